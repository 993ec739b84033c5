/* weave-router-init: process 1 of the router's container. It starts the router again when it dies, and reaps orphans.
 *
 *     weave-router-init PROGRAM [ARGUMENT...]
 *
 * kubelet waits 10 s, 20 s, up to 5 minutes before it starts a container again; pods without their router wait as long.
 * So the router is started again from here: at once, then after 0.5 s, 1 s, up to 10 s while it keeps dying young. What
 * process 1 is told by signal the router is told. SIGTERM, SIGINT, SIGQUIT also say that its end shall be the end.
 *
 * It shares no code with the router and must not know what the program does. Called by the image's entry point only.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    YOUNG_MS = 10000, /* who lived longer is started again at once */
    FIRST_MS = 500,
    MOST_MS = 10000,
    NOT_STARTED = 127,
};

static long long now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

static pid_t start(char **argv, const sigset_t *ours) {
    pid_t child = fork();
    if (child != 0) return child;
    setpgid(0, 0); /* a terminal's Ctrl-C comes to us alone, and from us to it: once */
    sigprocmask(SIG_UNBLOCK, ours, NULL);
    execvp(argv[0], argv);
    fprintf(stderr, "weave-router-init: cannot start %s: %s\n", argv[0], strerror(errno));
    _exit(NOT_STARTED);
}

/* Reaps all who ended. True when `child` was among them: then `status` is its. */
static bool reap(pid_t child, int *status) {
    bool ended = false;
    int one;
    for (pid_t pid; (pid = waitpid(-1, &one, WNOHANG)) > 0;)
        if (pid == child) {
            ended = true;
            *status = one;
        }
    return ended;
}

static int exit_status(int status) { return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status); }

/* At once after the first death, or after a long life; then longer and longer. */
static long long delay_after(long long last, long long lived) {
    if (last < 0 || lived >= YOUNG_MS) return 0;
    return last == 0 ? FIRST_MS : last * 2 < MOST_MS ? last * 2 : MOST_MS;
}

/* The next signal; 0 when `end` came first. Without `end` (0) it waits as long as it takes. */
static int next_signal(const sigset_t *ours, long long end) {
    for (int number;;) {
        long long left = end - now_ms();
        if (end != 0 && left <= 0) return 0;
        struct timespec wait = {left / 1000, left % 1000 * 1000000};
        number = end == 0 ? sigwaitinfo(ours, NULL) : sigtimedwait(ours, NULL, &wait);
        if (number > 0) return number;
    }
}

int main(int argc, char **argv) {
    static const int passed[] = {SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2};
    sigset_t ours;
    if (argc < 2) {
        fputs("usage: weave-router-init PROGRAM [ARGUMENT...]\n", stderr);
        return 2;
    }
    sigemptyset(&ours);
    sigaddset(&ours, SIGCHLD);
    for (size_t i = 0; i < sizeof passed / sizeof *passed; i++) {
        signal(passed[i], SIG_DFL); /* what is ignored is never received, and the router would inherit that */
        sigaddset(&ours, passed[i]);
    }
    sigprocmask(SIG_BLOCK, &ours, NULL);

    bool ending = false;
    long long delay = -1, again_at = 0, started = now_ms();
    pid_t child = start(argv + 1, &ours);
    for (int status = 0; child >= 0;) {
        int number = next_signal(&ours, child == 0 ? again_at : 0);
        if (number == 0) {
            started = now_ms();
            child = start(argv + 1, &ours);
        } else if (number != SIGCHLD) {
            ending = ending || number == SIGTERM || number == SIGINT || number == SIGQUIT;
            if (child > 0) kill(child, number);
            else if (ending) return exit_status(status);
        } else if (reap(child, &status) && child > 0) {
            if (ending) return exit_status(status);
            long long lived = now_ms() - started;
            delay = delay_after(delay, lived);
            fprintf(stderr, "weave-router-init: %s ended with status %d after %lld.%lld s, again in %lld.%lld s\n",
                    argv[1], exit_status(status), lived / 1000, lived % 1000 / 100, delay / 1000, delay % 1000 / 100);
            again_at = now_ms() + delay;
            child = 0;
        }
    }
    fprintf(stderr, "weave-router-init: cannot fork: %s\n", strerror(errno));
    return 1;
}
