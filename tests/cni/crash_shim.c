/* Ends the executable before its CRASH_AT-th change of a file or step towards the router (exit status 42); linked into
 * it with --wrap. Called by test_shim_journal.py. */
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <unistd.h>

static void step(void) {
    static int count;
    const char *at = getenv("CRASH_AT");
    if (at && ++count == atoi(at)) _exit(42);
}

int __real_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    int mode = va_arg(more, int);
    va_end(more);
    step();
    return __real_open(path, flags, mode);
}

ssize_t __real_write(int fd, const void *data, size_t len);
ssize_t __wrap_write(int fd, const void *data, size_t len) {
    step();
    if (len > 1 && getenv("CRASH_AT")) len = (len + 1) / 2; /* a write may stop half-way: the next step is in the middle */
    return __real_write(fd, data, len);
}

int __real_fsync(int fd);
int __wrap_fsync(int fd) { return step(), __real_fsync(fd); }
int __real_rename(const char *from, const char *to);
int __wrap_rename(const char *from, const char *to) { return step(), __real_rename(from, to); }
int __real_unlink(const char *path);
int __wrap_unlink(const char *path) { return step(), __real_unlink(path); }
int __real_mkdir(const char *path, mode_t mode);
int __wrap_mkdir(const char *path, mode_t mode) { return step(), __real_mkdir(path, mode); }
int __real_connect(int fd, const struct sockaddr *address, socklen_t len);
int __wrap_connect(int fd, const struct sockaddr *address, socklen_t len) { return step(), __real_connect(fd, address, len); }
