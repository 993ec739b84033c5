# Which class the kernel schedules a worker in. A kernel's own router carries frames in its softirq, ahead of every
# process; a thread of the ordinary class waits milliseconds for the turns of busy pods, whatever its nice level where
# the kernel weighs groups of processes. So a worker that had to wait is a real-time thread for a while, as long as it takes
# no more than a share of one CPU; past that an ordinary one, as softirq work past its time is handed to ksoftirqd: what
# it carries must not starve the node, whoever sends it. Where nobody has to wait the ordinary class wakes up sooner.
# Called by worker alone.
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport strtoull

from weave_router.fastpath.includes.linux cimport (
    O_CLOEXEC,
    O_RDONLY,
    SCHED_OTHER,
    SCHED_RR,
    close,
    nanosleep,
    open,
    pread,
    sched_param,
    sched_setscheduler,
    timespec,
)

cdef enum:
    REALTIME_PRIORITY = 1  # the least: ahead of ordinary threads, behind everything else that asks for it
    REALTIME_NS = 1000000000  # of one stay; then the ordinary class is tried again
    REALTIME_CREDIT_NS = 20000000  # CPU time beyond the share, for bursts; all of it back before it is real time again
    LOOK_NS = 1000000  # between two looks at what the kernel counted
    MISSED_NS = 4000000  # waited for a CPU until it is real time; the first that is missed after a stay is enough again
    AGAIN_NS = 500000
    FORGIVEN = 16  # part of the time that it may wait,
    WAKE_NS = 20000  # and what each turn may: for an idle CPU to wake up, for who woke us to sleep
    # Before it waits a real-time worker rests: woken for each frame it would keep the senders from their CPU.
    REST_NS = 30000  # what comes meanwhile goes together
    LONG_REST_NS = 200000  # after MANY at once: small ones, which cost about as much as large ones each
    MANY = 16
    FEW = 2  # one alone is no reason to rest: its answer may come at once

cdef struct Scheduling:
    int fd  # the kernel's figures of this thread; -1: it keeps none, or refuses the class
    int64_t share  # of a CPU, per 1,024
    int64_t credit_ns
    uint64_t looked_ns
    uint64_t used_ns  # on a CPU, at that look
    uint64_t waited_ns  # for a CPU
    uint64_t turns
    int64_t missed_ns
    uint64_t until_ns
    int32_t realtime
    int32_t served  # frames and messages since the last rest


cdef inline bint ask_realtime(bint wanted) noexcept nogil:
    """False: refused (no CAP_SYS_NICE and no RLIMIT_RTPRIO, or a control group without real-time budget)."""
    cdef sched_param parameter
    parameter.sched_priority = REALTIME_PRIORITY if wanted else 0
    return sched_setscheduler(0, SCHED_RR if wanted else SCHED_OTHER, &parameter) == 0


cdef inline bint read_figures(Scheduling *it) noexcept nogil:
    """``<ns on a CPU> <ns ready and not on one> <turns>``."""
    cdef char text[96]
    cdef char *end
    cdef ssize_t n = pread(it.fd, text, sizeof(text) - 1, 0)
    if n <= 0:
        return False
    text[n] = 0
    it.used_ns = strtoull(text, &end, 10)
    it.waited_ns = strtoull(end, &end, 10)
    it.turns = strtoull(end, NULL, 10)
    return True


cdef inline void scheduling_end(Scheduling *it) noexcept nogil:
    if it.fd >= 0:
        close(it.fd)
    it.fd = -1


cdef inline void scheduling_begin(Scheduling *it, int64_t share, uint64_t now) noexcept nogil:
    it.fd = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC) if share > 0 else -1
    it.share = share
    it.credit_ns = REALTIME_CREDIT_NS
    it.looked_ns = now
    it.realtime = it.served = 0
    it.missed_ns = 0
    if it.fd >= 0 and not (read_figures(it) and ask_realtime(True) and ask_realtime(False)):
        scheduling_end(it)


cdef inline bint scheduling_look(Scheduling *it, uint64_t now) noexcept nogil:
    """Once per burst. True: its share is used up, it has become an ordinary thread."""
    cdef uint64_t used = it.used_ns, waited = it.waited_ns, turns = it.turns, passed = now - it.looked_ns
    cdef int64_t missed
    if it.fd < 0 or passed < LOOK_NS or not read_figures(it):
        return False
    it.looked_ns = now
    it.credit_ns += (<int64_t>passed * it.share >> 10) - <int64_t>(it.used_ns - used)
    it.credit_ns = min(it.credit_ns, <int64_t>REALTIME_CREDIT_NS)
    if it.realtime:
        if it.credit_ns <= 0 or now >= it.until_ns:
            it.realtime = not ask_realtime(False)
            it.missed_ns = MISSED_NS - AGAIN_NS
            return it.credit_ns <= 0
        return False
    it.credit_ns = max(it.credit_ns, 0)
    missed = <int64_t>(it.waited_ns - waited) - <int64_t>(it.turns - turns) * WAKE_NS
    it.missed_ns += max(0, missed) - <int64_t>(passed / FORGIVEN)
    it.missed_ns = max(0, min(it.missed_ns, <int64_t>MISSED_NS))
    if it.missed_ns == MISSED_NS and it.credit_ns == REALTIME_CREDIT_NS:
        it.realtime = ask_realtime(True)
        it.until_ns = now + REALTIME_NS
        if not it.realtime:
            scheduling_end(it)
    return False


cdef inline bint scheduling_rest(Scheduling *it) noexcept nogil:
    """Called when there was nothing to do. True: rested, look again; False: wait for work."""
    cdef timespec t
    if not it.realtime or it.served < FEW:
        it.served = 0
        return False
    t.tv_sec = 0
    t.tv_nsec = LONG_REST_NS if it.served >= MANY else REST_NS
    it.served = 0
    nanosleep(&t, NULL)
    return True
