/*
 * flows: TCP connections that stay, and new ones all the time; says how many broke and how long each was silent.
 *
 *   flows serve --bind A --port P                    echoes what it gets, until SIGTERM
 *   flows call --to A --port P --flows N --interval MS --rate R
 *
 * `call` opens N connections, prints {"ready": true} when all stand, and sends one number over each every MS
 * milliseconds; R times a second it opens another one, sends one number, awaits it back and closes. SIGTERM: no new
 * ones, DRAIN_MS for those under way, then one JSON object. One thread, one epoll. Called by load.py.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define PROGRAM "flows"
#include "common.h"

enum { CONNECTIONS_MAX = 4096, EVENTS = 64, DRAIN_MS = 8000, READY_MS = 20000 };

struct connection {
    int fd;                         /* -1: the place is free */
    bool stays;
    uint64_t begun, sent, got;      /* ns; numbers sent, numbers back */
    uint64_t waiting_since;         /* ns; 0: all is back */
    uint64_t next;                  /* ns; when the next number is due */
    uint8_t half[8];                /* a number of which not all came yet */
    unsigned have;
};

static struct connection all[CONNECTIONS_MAX];
static int epoll;
static uint64_t broken, opened, refused, completed, stall, slowest;
static char first_error[128];

static struct addrinfo *resolve(const char *address, const char *port)
{
    struct addrinfo *found, hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST | AI_PASSIVE};
    int status = getaddrinfo(address, port, &hints, &found);
    if (status) {
        fprintf(stderr, "flows: address %s: %s\n", address, gai_strerror(status));
        exit(2);
    }
    return found;
}

static void watch(int fd, uint32_t events, uint64_t data, int operation)
{
    struct epoll_event event = {.events = events, .data.u64 = data};
    if (epoll_ctl(epoll, operation, fd, &event))
        die("epoll_ctl");
}

/* ---- serve ---------------------------------------------------------------------------------------------------- */

static void echo(int fd)
{
    uint8_t data[4096];
    ssize_t n = recv(fd, data, sizeof data, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0 || send(fd, data, (size_t)n, MSG_NOSIGNAL) != n)
        close(fd);
}

static int serve(const struct addrinfo *at)
{
    int one = 1, listener = socket(at->ai_family, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (listener < 0 || bind(listener, at->ai_addr, at->ai_addrlen) || listen(listener, 1024))
        die("listen");
    watch(listener, EPOLLIN, (uint64_t)listener, EPOLL_CTL_ADD);
    printf("{\"ready\": true}\n");
    fflush(stdout);
    while (!stopped) {
        struct epoll_event events[EVENTS];
        int count = epoll_wait(epoll, events, EVENTS, 1000);
        for (int i = 0; i < count; i++) {
            int fd = (int)events[i].data.u64;
            if (fd != listener) {
                echo(fd);
                continue;
            }
            for (int client; (client = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
                setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                watch(client, EPOLLIN, (uint64_t)client, EPOLL_CTL_ADD);
            }
        }
    }
    printf("{\"ok\": true}\n");
    return 0;
}

/* ---- call ----------------------------------------------------------------------------------------------------- */

static void fail(struct connection *c, const char *what, int error)
{
    if (!first_error[0])
        snprintf(first_error, sizeof first_error, "%s after %" PRIu64 " ms: %s", what, (now_ns() - c->begun) / 1000000, strerror(error));
    if (c->stays) broken++; else refused++;
    close(c->fd);
    c->fd = -1;
}

static bool open_one(const struct addrinfo *to, bool stays)
{
    static unsigned from;
    for (unsigned tried = 0; tried < CONNECTIONS_MAX; tried++) {
        struct connection *c = &all[from++ % CONNECTIONS_MAX];
        if (c->fd >= 0) continue;
        int one = 1;
        *c = (struct connection){.fd = socket(to->ai_family, SOCK_STREAM | SOCK_NONBLOCK, 0), .stays = stays, .begun = now_ns()};
        if (c->fd < 0) die("socket");
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (connect(c->fd, to->ai_addr, to->ai_addrlen) && errno != EINPROGRESS)
            fail(c, "connect", errno);
        else
            watch(c->fd, EPOLLIN | EPOLLOUT, (uint64_t)(c - all), EPOLL_CTL_ADD);
        return true;
    }
    return false;
}

static void send_number(struct connection *c, uint64_t at)
{
    c->sent++;
    if (send(c->fd, &c->sent, sizeof c->sent, MSG_NOSIGNAL) != sizeof c->sent)
        fail(c, "send", errno);
    else if (!c->waiting_since)
        c->waiting_since = at;
}

static void note_stall(struct connection *c, uint64_t at)
{
    if (c->waiting_since && at - c->waiting_since > stall)
        stall = at - c->waiting_since;
}

static void take_numbers(struct connection *c, uint64_t at)
{
    for (;;) {
        ssize_t n = recv(c->fd, c->half + c->have, sizeof c->half - c->have, 0);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (n <= 0) { fail(c, n ? "receive" : "closed by the peer", errno); return; }
        if ((c->have += (unsigned)n) < sizeof c->half) continue;
        uint64_t number;
        memcpy(&number, c->half, sizeof number);
        c->have = 0;
        if (number != ++c->got) { fail(c, "another number came back", EPROTO); return; }
        note_stall(c, at);
        c->waiting_since = c->got < c->sent ? at : 0;
        if (!c->stays) {
            completed++;
            slowest = at - c->begun > slowest ? at - c->begun : slowest;
            close(c->fd);
            c->fd = -1;
            return;
        }
    }
}

static void attend(struct connection *c, uint32_t events)
{
    uint64_t at = now_ns();
    if (c->fd < 0) return;
    if (!c->sent && events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) { fail(c, "connect", error); return; }
        watch(c->fd, EPOLLIN, (uint64_t)(c - all), EPOLL_CTL_MOD);
        c->next = at;
        send_number(c, at);
    } else if (events & (EPOLLIN | EPOLLERR | EPOLLHUP))
        take_numbers(c, at);
}

static unsigned count(bool stays, bool standing)
{
    unsigned n = 0;
    for (int i = 0; i < CONNECTIONS_MAX; i++)
        n += all[i].fd >= 0 && all[i].stays == stays && (!standing || all[i].got);
    return n;
}

static void wait_events(int ms)
{
    struct epoll_event events[EVENTS];
    int n = epoll_wait(epoll, events, EVENTS, ms);
    for (int i = 0; i < n; i++)
        attend(&all[events[i].data.u64], events[i].events);
}

static unsigned unanswered(void)
{
    unsigned n = 0;
    for (int i = 0; i < CONNECTIONS_MAX; i++)
        n += all[i].fd >= 0 && (!all[i].stays || all[i].got < all[i].sent);
    return n;
}

static int call(const struct addrinfo *to, unsigned flows, uint64_t interval, double rate)
{
    for (unsigned i = 0; i < flows; i++)
        open_one(to, true);
    for (uint64_t end = now_ns() + READY_MS * 1000000ull; count(true, true) < flows && now_ns() < end && !broken && !stopped;)
        wait_events(10);
    if (count(true, true) < flows) {
        fprintf(stderr, "flows: %u of %u connections stand; %s\n", count(true, true), flows, first_error);
        return 1;
    }
    stall = 0;                      /* what follows counts, not how long the first handshakes took */
    printf("{\"ready\": true}\n");
    fflush(stdout);
    uint64_t start = now_ns(), end = 0;
    for (unsigned i = 0; i < CONNECTIONS_MAX; i++)
        if (all[i].fd >= 0 && all[i].stays)
            all[i].next = start + interval * i / (flows ? flows : 1);
    while (!end || (unanswered() && now_ns() < end)) {
        uint64_t at = now_ns();
        if (stopped && !end) end = at + DRAIN_MS * 1000000ull;
        for (int i = 0; i < CONNECTIONS_MAX && !end; i++)
            if (all[i].fd >= 0 && all[i].stays && all[i].next <= at) {
                all[i].next += interval;
                send_number(&all[i], at);
            }
        while (!end && rate > 0 && (double)(at - start) * rate / 1e9 >= (double)opened + 1 && open_one(to, false))
            opened++;
        wait_events(5);
    }
    for (int i = 0; i < CONNECTIONS_MAX; i++)
        if (all[i].fd >= 0 && all[i].stays)
            note_stall(&all[i], now_ns());
    unsigned silent = 0;
    for (int i = 0; i < CONNECTIONS_MAX; i++)
        silent += all[i].fd >= 0 && all[i].stays && all[i].got < all[i].sent;
    printf("{\"flows\": %u, \"broken\": %" PRIu64 ", \"silent\": %u, \"stall_ms\": %.1f, \"opened\": %" PRIu64 ", \"refused\": %" PRIu64
           ", \"completed\": %" PRIu64 ", \"unfinished\": %u, \"slowest_ms\": %.1f, \"error\": \"%s\"}\n",
           flows, broken, silent, (double)stall / 1e6, opened, refused, completed, count(false, false), (double)slowest / 1e6, first_error);
    return 0;
}

/* ---- command line --------------------------------------------------------------------------------------------- */

static const char *option(int argc, char **argv, const char *name, const char *otherwise)
{
    for (int i = 2; i + 1 < argc; i += 2)
        if (!strcmp(argv[i], name)) return argv[i + 1];
    return otherwise;
}

int main(int argc, char **argv)
{
    struct sigaction stop = {.sa_handler = on_signal};
    sigaction(SIGTERM, &stop, NULL);
    sigaction(SIGINT, &stop, NULL);
    for (int i = 0; i < CONNECTIONS_MAX; i++)
        all[i].fd = -1;
    epoll = epoll_create1(EPOLL_CLOEXEC);
    const char *mode = argc > 1 ? argv[1] : "", *port = option(argc, argv, "--port", "7800");
    if (!strcmp(mode, "serve"))
        return serve(resolve(option(argc, argv, "--bind", "::"), port));
    if (!strcmp(mode, "call"))
        return call(resolve(option(argc, argv, "--to", "::1"), port), (unsigned)atoi(option(argc, argv, "--flows", "1")),
                    strtoull(option(argc, argv, "--interval", "500"), NULL, 10) * 1000000u, atof(option(argc, argv, "--rate", "0")));
    fprintf(stderr, "usage: flows serve|call [--option value]...\n");
    return 2;
}
