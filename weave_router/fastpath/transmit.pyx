# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Sealing and sending: frames in, trains of datagrams out (one sendmsg with UDP_SEGMENT per train).

Called by the workers only, without the GIL. Knows sessions and paths, nothing of what a frame holds; `inside` decided
where it goes. Exception to the size habit: append_sealed and train_flush are the hot loop, straight on purpose.
"""
from libc.stdint cimport uint8_t, uint16_t, uint64_t
from libc.string cimport memcpy, memset

from weave_router.fastpath.aead cimport TAG_SIZE, Cipher
from weave_router.fastpath.counters cimport (
    C_BUNDLED_FRAMES,
    C_BUNDLES,
    C_CONTROL_SENT,
    C_DATAGRAM_BYTES_SENT,
    C_DATAGRAMS_SENT,
    C_FRAGMENTED,
    C_FRAGMENTS_SENT,
    C_SENDS,
    D_NONCE,
    D_SEND,
    D_TOO_BIG,
)
from weave_router.fastpath.includes.linux cimport (
    CMSG_LEN,
    CMSG_SPACE,
    EAGAIN,
    EINTR,
    EINVAL,
    EIO,
    EMSGSIZE,
    IP_TOS,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPV6_TCLASS,
    MSG_DONTWAIT,
    POLLOUT,
    SOL_UDP,
    UDP_SEGMENT,
    cmsghdr,
    errno,
    iovec,
    msghdr,
    poll,
    pollfd,
    sendmsg,
)
from weave_router.fastpath.includes.native cimport (
    acquire_ptr,
    exchange32,
    relaxed64,
    set64,
    store_be16,
    store_be32,
    store_be64,
)
from weave_router.fastpath.lanes cimport lanes_are_kept, next_nonces
from weave_router.fastpath.report cimport (
    EV_GSO_OFF_,
    EV_PATH_ERROR_,
    EV_REKEY_,
    count,
    drop,
    drop_traced,
    event_simple,
    trace,
)
from weave_router.fastpath.state cimport (
    SESSION_PLAINTEXT_,
    SESSION_SLOTS,
    TRAIN_BYTES,
    TRAIN_SEGMENTS,
    TRAINS,
    Command,
    Path,
    Run,
    Session,
    Train,
    TxLane,
    Worker,
)
from weave_router.fastpath.wire cimport (
    BUNDLE_ENTRY,
    DESCRIPTOR_SIZE,
    FLAG_LAST,
    HEADER_PLAINTEXT,
    HEADER_SIZE,
    KIND_BUNDLE,
    KIND_CONTROL,
    KIND_FRAGMENT,
    SEALED_OVERHEAD,
    TYPE_DATA,
)

cdef enum:
    BUNDLE_FRAME_MAX = 512  # larger frames travel alone
    TRACE_FLUSH = 1
    TELL_NS = 100000000


cdef inline Session *sending_session(Worker *w, int slot) noexcept nogil:
    return <Session *>acquire_ptr(&w.shared.nodes[slot].session)


cdef inline Path *sending_path(Worker *w, int slot) noexcept nogil:
    return <Path *>acquire_ptr(&w.shared.nodes[slot].path)


cdef int frame_budget(Worker *w, int slot) noexcept nogil:
    cdef Path *path = sending_path(w, slot)
    if path == NULL or sending_session(w, slot) == NULL:
        return 0
    return path.payload_max - SEALED_OVERHEAD


cdef inline int write_nonce(Worker *w, Session *s, int number, int epoch, Run *run, uint8_t *header) noexcept nogil:
    """Lane and counter to header bytes 8..15. -1 when there is none."""
    cdef TxLane *lane = &s.tx[number]
    cdef uint64_t counter
    if run != NULL and run.lane == lane and run.epoch == epoch:
        counter = run.next
        run.next += 1
    else:
        counter = next_nonces(w, lane, epoch, 1)
    if counter == 0:
        return -1
    store_be64(header + 8, (<uint64_t>(epoch << 4 | number) << 56) | counter)
    return 0


cdef inline void sent_on(Worker *w, Session *s, int size) noexcept nogil:
    cdef TxLane *lane = &s.tx[w.id]
    set64(&lane.packets, lane.packets + 1)
    set64(&lane.bytes, lane.bytes + <uint64_t>size)
    set64(&s.last_tx_ns, w.now)
    if relaxed64(&s.unanswered_rx_ns):
        set64(&s.unanswered_rx_ns, 0)
    if (lane.packets >= w.rekey_packets or lane.bytes >= w.rekey_bytes) and exchange32(&s.rekey_asked, 1) == 0:
        event_simple(w, EV_REKEY_, s.index, 0)


cdef inline int seal_datagram(Worker *w, Session *s, int lane, int epoch, Run *run, uint8_t *out, const uint8_t *body,
                              int size, bint always_sealed) noexcept nogil:
    """Header, sealed body (descriptor and frame bytes, contiguous) and tag to out. Its length, or 0 (counted)."""
    cdef Cipher *cipher = &s.seal[w.id]
    cdef uint8_t nonce[12]
    out[0] = TYPE_DATA
    out[1] = 0
    store_be16(out + 2, w.shared.network)
    store_be32(out + 4, s.remote_index)
    if write_nonce(w, s, lane, epoch, run, out) != 0:
        drop_traced(w, D_NONCE, s.index)
        return 0
    if s.flags & SESSION_PLAINTEXT_ and not always_sealed:
        out[1] = HEADER_PLAINTEXT
        if body != out + HEADER_SIZE:
            memcpy(out + HEADER_SIZE, body, size)
        return HEADER_SIZE + size
    memset(nonce, 0, 4)
    memcpy(nonce + 4, out + 8, 8)
    if cipher.seal(cipher, nonce, out, body, size, out + HEADER_SIZE) != 0:
        drop_traced(w, D_SEND, s.index)
        return 0
    return HEADER_SIZE + size + TAG_SIZE


# ---- sendmsg -----------------------------------------------------------------------------------------------------


cdef inline size_t put_cmsg(uint8_t *control, size_t at, int level, int kind, const void *data, size_t n) noexcept nogil:
    cdef cmsghdr *c = <cmsghdr *>(control + at)
    c.cmsg_level = level
    c.cmsg_type = kind
    c.cmsg_len = CMSG_LEN(n)
    memcpy(control + at + CMSG_LEN(0), data, n)
    return at + CMSG_SPACE(n)


cdef int send_once(Worker *w, Path *path, uint8_t *data, int size, int segment, int tos) noexcept nogil:
    """One sendmsg; segment 0: a single datagram. 0 or errno. Waits at most 2 ms for room in the socket."""
    cdef msghdr m
    cdef iovec iov
    cdef pollfd waiting
    cdef uint8_t control[192]
    cdef size_t used = 0
    cdef uint16_t gso = <uint16_t>segment
    cdef int _attempt, e
    memset(&m, 0, sizeof(m))
    memset(control, 0, sizeof(control))
    iov.iov_base = data
    iov.iov_len = size
    m.msg_name = &path.remote
    m.msg_namelen = path.remote_size
    m.msg_iov = &iov
    m.msg_iovlen = 1
    if path.control_size:
        memcpy(control, path.control, path.control_size)
        used = path.control_size
    if segment:
        used = put_cmsg(control, used, SOL_UDP, UDP_SEGMENT, &gso, 2)
    if tos:
        if path.outer_family == 6:
            used = put_cmsg(control, used, IPPROTO_IPV6, IPV6_TCLASS, &tos, 4)
        else:
            used = put_cmsg(control, used, IPPROTO_IP, IP_TOS, &tos, 4)
    if used:
        m.msg_control = control
        m.msg_controllen = used
    for _attempt in range(3):
        if sendmsg(w.udp_fd, &m, MSG_DONTWAIT) >= 0:
            return 0
        e = errno
        if e == EAGAIN:
            waiting.fd = w.udp_fd
            waiting.events = POLLOUT
            waiting.revents = 0
            poll(&waiting, 1, 2)
        elif e != EINTR:
            return e
    return EAGAIN


cdef void path_error(Worker *w, Path *path, int slot, int e) noexcept nogil:
    """Tell Python, ten times a second at most: a dead path must not fill the ring that handshakes come through."""
    if w.now - relaxed64(&path.told_ns) < TELL_NS:
        return
    set64(&path.told_ns, w.now)
    event_simple(w, EV_PATH_ERROR_, slot, e)


cdef void send_singly(Worker *w, Train *t) noexcept nogil:
    cdef int at = 0, size, e, bad = 0
    while at < t.used:
        size = t.segment if t.used - at > t.segment else t.used - at
        e = send_once(w, t.path, t.data + at, size, 0, t.tos)
        count(w, C_SENDS, 1)
        if e == 0:
            count(w, C_DATAGRAMS_SENT, 1)
            count(w, C_DATAGRAM_BYTES_SENT, size)
        else:
            drop_traced(w, D_SEND, e)
            bad = e
        at += size
    if bad:
        path_error(w, t.path, t.slot, bad)


cdef void train_flush(Worker *w, Train *t) noexcept nogil:
    """Send what the train holds and free it for another path."""
    cdef int e
    if t.slot == 0:
        return
    if t.bundle >= 0:
        bundle_close(w, t)
    if t.count == 1:
        send_singly(w, t)
    elif t.count > 1:
        if t.path.gso_off:
            send_singly(w, t)
        else:
            e = send_once(w, t.path, t.data, t.used, t.segment, t.tos)
            if e == 0:
                count(w, C_SENDS, 1)
                count(w, C_DATAGRAMS_SENT, t.count)
                count(w, C_DATAGRAM_BYTES_SENT, t.used)
            elif e == EMSGSIZE or e == EINVAL or e == EIO:
                if e != EMSGSIZE and exchange32(&t.path.gso_off, 1) == 0:
                    event_simple(w, EV_GSO_OFF_, t.slot, e)
                send_singly(w, t)
            else:
                set64(&w.drops[<int>D_SEND], w.drops[<int>D_SEND] + <uint64_t>(t.count - 1))  # one by drop_traced
                drop_traced(w, D_SEND, e)
                path_error(w, t.path, t.slot, e)
    trace(w, TRACE_FLUSH, t.slot, (<uint64_t>t.count << 32) | <uint64_t>t.used)
    t.slot = 0
    t.used = 0
    t.count = 0
    t.closed = 0
    t.bundle = -1
    t.bundle_frames = 0


cdef void transmit_flush(Worker *w) noexcept nogil:
    cdef int i
    for i in range(TRAINS):
        train_flush(w, &w.trains[i])


# ---- trains ------------------------------------------------------------------------------------------------------


cdef Train *train_for(Worker *w, int slot, int tos) noexcept nogil:
    """The open train of this node, with its present session and path; NULL when it has none."""
    cdef Session *session = sending_session(w, slot)
    cdef Path *path = sending_path(w, slot)
    cdef Train *t
    cdef Train *unused = NULL
    cdef int i
    if session == NULL or path == NULL:
        return NULL
    for i in range(TRAINS):
        t = &w.trains[i]
        if t.slot == slot:
            if t.session == session and t.path == path and t.tos == tos and t.lane == w.lane:
                return t
            train_flush(w, t)
            unused = t
            break
        if t.slot == 0 and unused == NULL:
            unused = t
    if unused == NULL:
        unused = &w.trains[w.next_train]
        w.next_train = (w.next_train + 1) % TRAINS
        train_flush(w, unused)
    unused.slot = slot
    unused.session = session
    unused.path = path
    unused.tos = tos
    unused.lane = w.lane
    unused.bundle = -1
    return unused


cdef inline void train_account(Worker *w, Train *t, int size) noexcept nogil:
    """A datagram of `size` bytes now stands at the tail."""
    if t.count == 0:
        t.segment = size
    elif size < t.segment:
        t.closed = 1
    t.used += size
    t.count += 1
    sent_on(w, t.session, size)
    if relaxed64(&t.session.first_unanswered_ns) == 0:
        set64(&t.session.first_unanswered_ns, w.now)


cdef inline bint train_fits(const Train *t, int size) noexcept nogil:
    if t.count == 0:
        return size <= TRAIN_BYTES
    return not t.closed and size <= t.segment and t.count < TRAIN_SEGMENTS and t.used + size <= TRAIN_BYTES


cdef void append_sealed(Worker *w, int slot, int tos, const uint8_t *body, int size, Run *run) noexcept nogil:
    """Seal one datagram (body = descriptor and frame bytes) to the end of the node's train; ``run``: with the next of
    these counters."""
    cdef Train *t = train_for(w, slot, tos)
    cdef int length, need = HEADER_SIZE + size + TAG_SIZE
    if t == NULL:
        drop(w, D_SEND)
        return
    if t.session.flags & SESSION_PLAINTEXT_:
        need = HEADER_SIZE + size
    if t.bundle >= 0:
        bundle_close(w, t)
    if not train_fits(t, need):
        train_flush(w, t)
        t = train_for(w, slot, tos)
        if t == NULL:
            drop(w, D_SEND)
            return
    length = seal_datagram(w, t.session, t.lane, t.path.epoch, run, t.data + t.used, body, size, False)
    if length:
        train_account(w, t, length)


cdef inline void descriptor(uint8_t *p, int kind, int index, int size, int flags) noexcept nogil:
    p[0] = <uint8_t>kind
    p[1] = <uint8_t>index
    store_be16(p + 2, <uint16_t>size)
    p[4] = <uint8_t>flags
    p[5] = 0
    p[6] = 0
    p[7] = 0


# ---- bundles -----------------------------------------------------------------------------------------------------


cdef void bundle_close(Worker *w, Train *t) noexcept nogil:
    """Seal the open bundle where it stands."""
    cdef int start = t.bundle, frames = t.bundle_frames, length
    cdef int size = t.used - start - HEADER_SIZE
    t.bundle = -1
    t.bundle_frames = 0
    t.used = start
    length = seal_datagram(w, t.session, t.lane, t.path.epoch, NULL, t.data + start, t.data + start + HEADER_SIZE, size,
                           False)
    if length == 0:
        return
    if frames > 1:
        count(w, C_BUNDLES, 1)
        count(w, C_BUNDLED_FRAMES, frames)
    train_account(w, t, length)


cdef void bundle_append(Worker *w, int slot, int tos, const uint8_t *data, int size, int flags) noexcept nogil:
    """Put a small frame into the bundle at the tail of the node's train; open, close or flush as needed."""
    cdef Train *t = train_for(w, slot, tos)
    cdef int room, fresh = HEADER_SIZE + DESCRIPTOR_SIZE + BUNDLE_ENTRY + size + TAG_SIZE
    cdef uint8_t *entry
    if t == NULL:
        drop(w, D_SEND)
        return
    if t.bundle >= 0:
        room = t.path.payload_max
        if t.count and t.segment < room:
            room = t.segment
        if t.used - t.bundle + BUNDLE_ENTRY + size + TAG_SIZE > room:
            bundle_close(w, t)
    if t.bundle < 0:
        if not train_fits(t, fresh) or t.used + t.path.payload_max > TRAIN_BYTES:
            train_flush(w, t)
            t = train_for(w, slot, tos)
            if t == NULL:
                drop(w, D_SEND)
                return
        t.bundle = t.used
        t.used += HEADER_SIZE + DESCRIPTOR_SIZE
        descriptor(t.data + t.bundle + HEADER_SIZE, KIND_BUNDLE, 0, 0, 0)
    entry = t.data + t.used
    store_be16(entry, <uint16_t>size)
    entry[2] = <uint8_t>flags
    entry[3] = 0
    memcpy(entry + BUNDLE_ENTRY, data, size)
    t.used += BUNDLE_ENTRY + size
    t.bundle_frames += 1


# ---- frames ------------------------------------------------------------------------------------------------------


cdef void transmit_fragments(Worker *w, int slot, uint8_t *data, int size, int flags, int tos, int budget) noexcept nogil:
    """A frame larger than the budget: consecutive pieces in one lane. The descriptor of piece k overwrites the end of
    piece k - 1, which is already sealed."""
    cdef int at = 0, index = 0, piece
    cdef Train *t = train_for(w, slot, tos)
    cdef Run run
    if budget < 64 or size > budget * 255:
        drop_traced(w, D_TOO_BIG, size)
        return
    count(w, C_FRAGMENTED, 1)
    run.lane = NULL
    if t != NULL and lanes_are_kept(w):
        run.lane = &t.session.tx[t.lane]
        run.epoch = t.path.epoch
        run.next = next_nonces(w, run.lane, run.epoch, (size + budget - 1) // budget)
        if run.next == 0:
            run.lane = NULL  # this epoch has none left
    while at < size:
        piece = budget if size - at > budget else size - at
        descriptor(data + at - DESCRIPTOR_SIZE, KIND_FRAGMENT, index, size,
                   flags | (FLAG_LAST if at + piece == size else 0))
        append_sealed(w, slot, tos, data + at - DESCRIPTOR_SIZE, DESCRIPTOR_SIZE + piece, &run)
        count(w, C_FRAGMENTS_SENT, 1)
        at += piece
        index += 1


cdef void transmit_frame(Worker *w, int slot, uint8_t *data, int size, int flags, int kind, int index, int gso,
                         int tos) noexcept nogil:
    cdef int budget = frame_budget(w, slot)
    if budget <= 0:
        drop(w, D_SEND)
        return
    if size > budget:
        transmit_fragments(w, slot, data, size, flags, tos, budget)
        return
    if size <= BUNDLE_FRAME_MAX and size + BUNDLE_ENTRY <= budget:
        bundle_append(w, slot, tos, data, size, flags)
        return
    descriptor(data - DESCRIPTOR_SIZE, kind, index, gso, flags)
    append_sealed(w, slot, tos, data - DESCRIPTOR_SIZE, DESCRIPTOR_SIZE + size, NULL)


# ---- control -----------------------------------------------------------------------------------------------------


cdef void transmit_command(Worker *w, Command *command) noexcept nogil:
    """Seal a control message of tunnel/ and send it alone, from this worker (worker 0)."""
    cdef Session *s = w.shared.sessions[command.session & (SESSION_SLOTS - 1)]
    cdef Path *path = command.path
    cdef Path *own
    cdef uint8_t *out = w.scratch
    cdef int size = DESCRIPTOR_SIZE + <int>command.size, length, e
    if s == NULL or s.index != command.session:
        return
    own = sending_path(w, s.slot)
    if path == NULL:
        path = own
    if path == NULL:
        return
    descriptor(out + HEADER_SIZE, KIND_CONTROL, 0, command.size, 0)
    memcpy(out + HEADER_SIZE + DESCRIPTOR_SIZE, command.data, command.size)
    if <int>command.pad_to > HEADER_SIZE + size + TAG_SIZE:
        memset(out + HEADER_SIZE + size, 0, command.pad_to - (HEADER_SIZE + size + TAG_SIZE))
        size = command.pad_to - HEADER_SIZE - TAG_SIZE
    length = seal_datagram(w, s, w.id, own.epoch if own != NULL else path.epoch, NULL, out, out + HEADER_SIZE, size,
                           True)
    if length == 0:
        return
    e = send_once(w, path, out, length, 0, 0)
    count(w, C_CONTROL_SENT, 1)
    if e == 0:
        sent_on(w, s, length)
        count(w, C_SENDS, 1)
        count(w, C_DATAGRAMS_SENT, 1)
        count(w, C_DATAGRAM_BYTES_SENT, length)
    else:
        drop_traced(w, D_SEND, e)
        event_simple(w, EV_PATH_ERROR_, s.slot, e)
