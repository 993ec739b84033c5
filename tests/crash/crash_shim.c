/* Preloaded into the child of test_store_crash.py: the process ends at its n-th change of a file below one directory.
 *
 * Changes are: create, write, truncate, sync, rename, unlink. A write that ends the process is carried out by half.
 * With `power`, everything that was not synced is taken back first, as when the machine loses power: contents by the
 * sync of their file, names by the sync of their directory. (The shared-memory index is lost with the memory.)
 * It must not know SQLite. crash_arm() is called by ctypes in the forked child; before that the shim does nothing. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { EXIT_CRASHED = 86, UNDO_MAX = 4096, FILES_MAX = 64 };
enum kind { CONTENT, CREATED, RENAMED };

struct undo {
    enum kind kind;
    ino_t inode;
    int fd; /* borrowed: from `files` */
    off_t offset, size; /* size of the file before */
    char *bytes; /* what stood at offset */
    size_t length;
    char from[PATH_MAX], to[PATH_MAX];
};

static char directory[PATH_MAX];
static long left = -1;
static int power;
static struct undo log_[UNDO_MAX];
static int logged;
/* A descriptor per inode that stays open: closing one would drop SQLite's POSIX locks on the file. */
static struct { ino_t inode; int fd; } files[FILES_MAX];
static int files_open;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

void crash_arm(const char *below, long nth, int with_power)
{
    snprintf(directory, sizeof directory, "%s", below);
    left = nth;
    power = with_power;
}

static int below(const char *path)
{
    size_t n = strlen(directory);
    return left >= 0 && strncmp(path, directory, n) == 0 && (path[n] == '/' || path[n] == 0);
}

static int ours(int fd, struct stat *found)
{
    char link[64], path[PATH_MAX];
    if (left < 0)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0 || fstat(fd, found) < 0)
        return 0;
    path[n] = 0;
    return below(path) && !(n > 4 && strcmp(path + n - 4, "-shm") == 0);
}

static void take_back(struct undo *u)
{
    if (u->kind == CREATED)
        REAL(unlink)(u->to);
    else if (u->kind == RENAMED)
        REAL(rename)(u->to, u->from);
    else {
        if (u->length)
            REAL(pwrite64)(u->fd, u->bytes, u->length, u->offset);
        REAL(ftruncate64)(u->fd, u->size);
    }
}

static void end(void)
{
    if (power)
        while (logged > 0)
            take_back(&log_[--logged]);
    _exit(EXIT_CRASHED);
}

static int is_last(void) { return --left == 0; }

static struct undo *new_undo(enum kind kind)
{
    if (logged == UNDO_MAX)
        abort();
    struct undo *u = &log_[logged++];
    memset(u, 0, sizeof *u);
    u->kind = kind;
    return u;
}

static int kept_fd(int fd, ino_t inode)
{
    char link[64];
    for (int i = 0; i < files_open; i++)
        if (files[i].inode == inode)
            return files[i].fd;
    if (files_open == FILES_MAX)
        abort();
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    files[files_open].inode = inode;
    return files[files_open++].fd = syscall(SYS_openat, AT_FDCWD, link, O_RDWR);
}

static void remember(int fd, const struct stat *before, off_t offset, size_t length)
{
    struct undo *u = new_undo(CONTENT);
    u->inode = before->st_ino;
    u->fd = kept_fd(fd, before->st_ino);
    u->offset = offset;
    u->size = before->st_size;
    u->length = offset >= before->st_size ? 0 : length;
    if (offset + (off_t)u->length > before->st_size)
        u->length = before->st_size - offset;
    u->bytes = malloc(u->length + 1);
    if (pread(u->fd, u->bytes, u->length, offset) != (ssize_t)u->length)
        abort();
}

static void forget(int is_directory, ino_t inode)
{
    for (int i = 0; i < logged; i++)
        if (log_[i].kind == CONTENT ? (!is_directory && log_[i].inode == inode) : is_directory) {
            free(log_[i].bytes);
            memmove(&log_[i], &log_[i + 1], (--logged - i) * sizeof log_[0]);
            i--;
        }
}

static ssize_t change(int fd, const void *data, size_t length, off_t offset)
{
    struct stat before;
    if (!ours(fd, &before))
        return REAL(pwrite64)(fd, data, length, offset);
    remember(fd, &before, offset, length);
    if (is_last()) {
        REAL(pwrite64)(fd, data, length / 2, offset);
        end();
    }
    return REAL(pwrite64)(fd, data, length, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset) { return change(fd, data, length, offset); }
ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) { return change(fd, data, length, offset); }

static int cut(int fd, off_t size)
{
    struct stat before;
    if (ours(fd, &before)) {
        remember(fd, &before, size, before.st_size > size ? before.st_size - size : 0);
        if (is_last())
            end();
    }
    return REAL(ftruncate64)(fd, size);
}

int ftruncate64(int fd, off64_t size) { return cut(fd, size); }
int ftruncate(int fd, off_t size) { return cut(fd, size); }

static int sync_(int fd)
{
    struct stat found;
    if (ours(fd, &found)) {
        if (is_last())
            end();
        forget(S_ISDIR(found.st_mode), found.st_ino);
    }
    return REAL(fsync)(fd);
}

int fsync(int fd) { return sync_(fd); }
int fdatasync(int fd) { return sync_(fd); }

int rename(const char *from, const char *to)
{
    if (below(to)) {
        if (is_last())
            end();
        struct undo *u = new_undo(RENAMED);
        snprintf(u->from, sizeof u->from, "%s", from);
        snprintf(u->to, sizeof u->to, "%s", to);
    }
    return REAL(rename)(from, to);
}

int unlink(const char *path)
{
    if (below(path) && is_last())
        end();
    return REAL(unlink)(path);
}

static int open_(const char *path, int flags, mode_t mode)
{
    int created = (flags & O_CREAT) && below(path) && faccessat(AT_FDCWD, path, F_OK, AT_SYMLINK_NOFOLLOW) < 0;
    if (created && is_last())
        end();
    int fd = syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    if (created && fd >= 0)
        snprintf(new_undo(CREATED)->to, PATH_MAX, "%s", path);
    return fd;
}

#define OPEN(name)                                                                                                     \
    int name(const char *path, int flags, ...)                                                                         \
    {                                                                                                                  \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0;                                           \
        va_end(rest);                                                                                                  \
        return open_(path, flags, mode);                                                                               \
    }
OPEN(open)
OPEN(open64)
