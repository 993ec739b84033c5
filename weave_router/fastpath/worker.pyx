# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""One worker: a thread without the GIL that serves both directions of one TAP queue and one UDP socket.

engine.Engine makes it, starts it on a thread, and frees it. The loop decides nothing about frames: it asks outside and
inside for a burst each, and sleeps in epoll when both had nothing.
"""
from libc.stdint cimport uint8_t, uint64_t

from weave_router.fastpath.counters cimport C_REALTIME_SPENT, C_WAKEUPS
from weave_router.fastpath.includes.linux cimport (
    EFD_CLOEXEC,
    EFD_NONBLOCK,
    EPOLL_CLOEXEC,
    EPOLL_CTL_ADD,
    EPOLLIN,
    PRIO_PROCESS,
    SIG_BLOCK,
    close,
    epoll_create1,
    epoll_ctl,
    epoll_event,
    epoll_wait,
    eventfd,
    pthread_sigmask,
    read,
    setpriority,
    sigfillset,
    sigset_t,
    usleep,
)
from weave_router.fastpath.includes.native cimport (
    acquire32,
    acquire64,
    full_fence,
    release64,
)
from weave_router.fastpath.includes.openssl cimport (
    EVP_MAC,
    EVP_MAC_CTX_free,
    EVP_MAC_CTX_new,
    EVP_MAC_fetch,
    EVP_MAC_free,
)
from weave_router.fastpath.inside cimport inside_burst, inside_parked
from weave_router.fastpath.outside cimport outside_burst
from weave_router.fastpath.pool cimport pool_free, pool_new
from weave_router.fastpath.queues cimport Queues, queues_credits, queues_init
from weave_router.fastpath.report cimport boottime_ns, count
from weave_router.fastpath.scheduling cimport scheduling_begin, scheduling_end, scheduling_look, scheduling_rest
from weave_router.fastpath.state cimport (
    COMMANDS,
    EVENTS,
    FRAME_MAX,
    NODES,
    PARTIALS,
    RX_BYTES,
    RX_MESSAGES,
    TRAINS,
    Command,
    Event,
    Parked,
    ParkedCount,
    Shared,
    Train,
    Worker,
)
from weave_router.fastpath.transmit cimport HEADROOM, transmit_command, transmit_flush

cdef enum:
    PARKED_LOOK_NS = 50000000
    TAP_RETRY_US = 20000
    NICE = -10  # of the ordinary class: a delayed reader loses what the TAP's queue does not hold; needs CAP_SYS_NICE


cdef Worker *worker_new(Shared *shared, int id, int workers) noexcept nogil:
    """Everything a worker will ever allocate but windows, partial and parked frames. NULL: no memory."""
    cdef Worker *w = <Worker *>pool_new(sizeof(Worker))
    cdef EVP_MAC *mac
    cdef int i
    if w == NULL:
        return NULL
    w.id = id
    w.workers = workers
    w.shared = shared
    w.tap_fd = -1
    w.udp_fd = -1
    w.seen = <uint64_t>GONE
    w.wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
    w.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
    w.events = <Event *>pool_new(EVENTS * sizeof(Event))
    w.commands = <Command *>pool_new(COMMANDS * sizeof(Command))
    w.trains = <Train *>pool_new(TRAINS * sizeof(Train))
    w.queues = <Queues *>pool_new(sizeof(Queues))
    w.scratch = <uint8_t *>pool_new(FRAME_MAX + 2 * HEADROOM)
    w.flood_buffer = <uint8_t *>pool_new(FRAME_MAX + 2 * HEADROOM)
    w.parked_of = <ParkedCount *>pool_new(NODES * sizeof(ParkedCount))
    w.rx_buffer = <uint8_t *>pool_new(RX_MESSAGES * RX_BYTES)
    mac = EVP_MAC_fetch(NULL, "BLAKE2SMAC", NULL)
    if mac != NULL:
        w.mac[0] = EVP_MAC_CTX_new(mac)
        EVP_MAC_free(mac)
    if w.events == NULL or w.commands == NULL or w.trains == NULL or w.queues == NULL or w.scratch == NULL or \
            w.flood_buffer == NULL or w.parked_of == NULL or w.rx_buffer == NULL or w.mac[0] == NULL or w.wake_fd < 0 or w.epoll_fd < 0:
        worker_free(w)
        return NULL
    queues_init(w.queues)
    for i in range(TRAINS):
        w.trains[i].bundle = -1
    for i in range(PARTIALS):
        w.partials[i].lane = -1
    return w


cdef void worker_free(Worker *w) noexcept nogil:
    cdef Parked *p
    cdef int i
    if w == NULL:
        return
    while w.parked_first != NULL:
        p = w.parked_first
        w.parked_first = p.next
        pool_free(p)
    for i in range(PARTIALS):
        pool_free(w.partials[i].data)
    while w.command_tail < w.command_head:
        pool_free(w.commands[w.command_tail & (COMMANDS - 1)].path)
        w.command_tail += 1
    if w.wake_fd >= 0:
        close(w.wake_fd)
    if w.epoll_fd >= 0:
        close(w.epoll_fd)
    EVP_MAC_CTX_free(w.mac[0])
    pool_free(w.events)
    pool_free(w.commands)
    pool_free(w.trains)
    pool_free(w.queues)
    pool_free(w.scratch)
    pool_free(w.flood_buffer)
    pool_free(w.parked_of)
    pool_free(w.rx_buffer)
    pool_free(w)


cdef void watch(Worker *w, int fd) noexcept nogil:
    cdef epoll_event event
    event.events = EPOLLIN
    event.data.u64 = <uint64_t>fd
    epoll_ctl(w.epoll_fd, EPOLL_CTL_ADD, fd, &event)


cdef void run_commands(Worker *w) noexcept nogil:
    cdef Command *command
    transmit_flush(w)  # an open bundle is sealed in its path's epoch before a command may begin the next
    while w.command_tail < acquire64(&w.command_head):
        command = &w.commands[w.command_tail & (COMMANDS - 1)]
        transmit_command(w, command)
        pool_free(command.path)
        command.path = NULL
        release64(&w.command_tail, w.command_tail + 1)


cdef void sleep_until_work(Worker *w) noexcept nogil:
    """Offline for reclamation while in epoll."""
    cdef epoll_event events[4]
    cdef uint64_t drained
    cdef int timeout = 50 if w.parked_first != NULL or w.queues.credits.bounds else 1000
    cdef int i, ready
    full_fence()
    release64(&w.seen, <uint64_t>GONE)
    ready = epoll_wait(w.epoll_fd, events, 4, timeout)
    release64(&w.seen, acquire64(&w.shared.generation))
    full_fence()
    for i in range(ready):
        if events[i].data.u64 == <uint64_t>w.wake_fd:
            read(w.wake_fd, &drained, 8)
    count(w, C_WAKEUPS, 1)


cdef void worker_run(Worker *w) noexcept nogil:
    cdef sigset_t all_signals
    cdef uint64_t changed = 0, looked
    cdef int received, taken
    sigfillset(&all_signals)
    pthread_sigmask(SIG_BLOCK, &all_signals, NULL)
    setpriority(PRIO_PROCESS, 0, NICE)  # Linux: of this thread alone
    queues_credits(w.queues, w.shared.credits)
    scheduling_begin(&w.scheduling, w.shared.realtime_share, boottime_ns())
    watch(w, w.tap_fd)
    watch(w, w.udp_fd)
    watch(w, w.wake_fd)
    while not acquire32(&w.stop):
        release64(&w.seen, acquire64(&w.shared.generation))
        full_fence()
        w.now = boottime_ns()
        if scheduling_look(&w.scheduling, w.now):
            count(w, C_REALTIME_SPENT, 1)
        received = outside_burst(w)
        taken = inside_burst(w)
        if w.command_tail < acquire64(&w.command_head):
            run_commands(w)
        if w.parked_first != NULL:
            looked = acquire64(&w.shared.sessions_changed)
            if looked != changed or w.now - w.parked_checked >= PARKED_LOOK_NS:
                changed = looked
                w.parked_checked = w.now
                inside_parked(w)
        transmit_flush(w)
        if taken < 0:
            usleep(TAP_RETRY_US)  # the TAP is down or gone: epoll would not let us sleep
        elif received or taken:
            w.scheduling.served += received + taken
        elif not scheduling_rest(&w.scheduling):
            sleep_until_work(w)
    scheduling_end(&w.scheduling)
    release64(&w.seen, <uint64_t>GONE)
