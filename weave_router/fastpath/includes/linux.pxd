# Foreign declarations: the socket, epoll, eventfd and clock calls of Linux, only the fields used.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "<sys/types.h>" nogil:
    ctypedef long ssize_t

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t writev(int fd, const iovec *iov, int n)

cdef extern from "<unistd.h>" nogil:
    ssize_t read(int fd, void *buf, size_t n)
    ssize_t write(int fd, const void *buf, size_t n)
    int close(int fd)
    int usleep(unsigned int usec)
    ssize_t pread(int fd, void *buf, size_t n, long offset)

cdef extern from "<fcntl.h>" nogil:
    int open(const char *path, int flags)
    enum:
        O_RDONLY
        O_CLOEXEC

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *t)
    int nanosleep(const timespec *t, timespec *left)
    enum:
        CLOCK_MONOTONIC
        CLOCK_BOOTTIME
        CLOCK_REALTIME
        CLOCK_THREAD_CPUTIME_ID

cdef extern from "<netinet/in.h>" nogil:
    ctypedef unsigned short sa_family_t
    ctypedef unsigned int socklen_t
    struct sockaddr:
        sa_family_t sa_family
    struct in_addr:
        uint32_t s_addr
    struct in6_addr:
        uint8_t s6_addr[16]
    struct sockaddr_in:
        sa_family_t sin_family
        uint16_t sin_port
        in_addr sin_addr
    struct sockaddr_in6:
        sa_family_t sin6_family
        uint16_t sin6_port
        uint32_t sin6_flowinfo
        in6_addr sin6_addr
        uint32_t sin6_scope_id
    struct in_pktinfo:
        int ipi_ifindex
        in_addr ipi_spec_dst
        in_addr ipi_addr
    struct in6_pktinfo:
        in6_addr ipi6_addr
        unsigned int ipi6_ifindex
    enum:
        AF_INET
        AF_INET6
        IPPROTO_IP
        IPPROTO_IPV6
        IP_PKTINFO
        IP_TOS
        IPV6_PKTINFO
        IPV6_TCLASS

cdef extern from "<sys/socket.h>" nogil:
    struct msghdr:
        void *msg_name
        socklen_t msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    cmsghdr *CMSG_FIRSTHDR(msghdr *m)
    cmsghdr *CMSG_NXTHDR(msghdr *m, cmsghdr *c)
    unsigned char *CMSG_DATA(cmsghdr *c)
    size_t CMSG_LEN(size_t n)
    size_t CMSG_SPACE(size_t n)
    ssize_t sendmsg(int fd, const msghdr *m, int flags)
    int recvmmsg(int fd, mmsghdr *v, unsigned int n, int flags, timespec *timeout)
    int getsockname(int fd, sockaddr *a, socklen_t *n)
    enum:
        MSG_DONTWAIT
        MSG_TRUNC
        SOL_SOCKET
        SO_RXQ_OVFL

cdef extern from "<netinet/udp.h>" nogil:
    enum:
        UDP_SEGMENT
        UDP_GRO
        SOL_UDP

cdef extern from "<sys/epoll.h>" nogil:
    union epoll_data_t:
        uint32_t u32
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int ep, int op, int fd, epoll_event *e)
    int epoll_wait(int ep, epoll_event *e, int n, int timeout)
    enum:
        EPOLLIN
        EPOLLERR
        EPOLL_CTL_ADD
        EPOLL_CLOEXEC

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long n, int timeout)
    enum:
        POLLOUT

cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd(unsigned int v, int flags)
    enum:
        EFD_NONBLOCK
        EFD_CLOEXEC

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    int sigfillset(sigset_t *s)
    int pthread_sigmask(int how, const sigset_t *s, sigset_t *old)
    enum:
        SIG_BLOCK

cdef extern from "<errno.h>" nogil:
    int errno
    enum:
        EINTR
        EAGAIN
        EMSGSIZE
        EINVAL
        EIO
        ENOBUFS

cdef extern from "<sched.h>" nogil:
    struct sched_param:
        int sched_priority
    int sched_setscheduler(int pid, int policy, const sched_param *parameter)
    int sched_yield()
    enum:
        SCHED_OTHER
        SCHED_RR

cdef extern from "<sys/resource.h>" nogil:
    int setpriority(int which, unsigned int who, int value)
    enum:
        PRIO_PROCESS
