/* Preloaded into the child of test_fastpath_allocation.py: counts heap calls of the threads that it is told to watch.
 *
 * watch(tid) adds a thread, heap_calls() reads the sum since the last call. It must not know what the threads do. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { WATCHED_MAX = 32 };

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void __libc_free(void *);

static long watched[WATCHED_MAX];
static int count;
static long calls;

static void seen(void) {
    static __thread long self;
    if (count == 0)
        return;
    if (self == 0)
        self = syscall(SYS_gettid);
    for (int i = 0; i < count; i++)
        if (watched[i] == self)
            __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED);
}

void watch(long tid) { watched[count] = tid; count++; }
long heap_calls(void) { return __atomic_exchange_n(&calls, 0, __ATOMIC_RELAXED); }

void *malloc(size_t n) { seen(); return __libc_malloc(n); }
void *calloc(size_t n, size_t m) { seen(); return __libc_calloc(n, m); }
void *realloc(void *p, size_t n) { seen(); return __libc_realloc(p, n); }
void free(void *p) { if (p) seen(); __libc_free(p); }
