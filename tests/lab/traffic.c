/*
 * traffic: the lab's own generator. One program, one mode per run, one JSON object on stdout when it ends.
 *
 *   tcp-recv  tcp-send      a seeded stream in 64 KiB blocks, each ending in its own hash; both sides hash the whole
 *   udp-recv  udp-send      datagrams of random sizes, paced, each with number, length, send time and its own hash
 *   stream-send             to udp-recv: small and full-size datagrams in turn, one every interval
 *   mcast-recv mcast-send   udp-recv and udp-send on a group (--enough N: end once N different ones came)
 *   pps-recv  pps-send      a flood of small datagrams, counted only
 *   echo      rtt           ping-pong of one datagram
 *   selftest                known answers of the hash
 *
 * Receivers print {"ready": true} once they are bound. It knows nothing of the product. Called by traffic.py.
 *
 * Datagram: hash u64 | magic u32 | length u32 | number u64 | send time u64 | pseudo-random bytes; the hash covers
 * everything behind itself. Byte order is the machine's own: both ends run on one kernel.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <getopt.h>
#include <inttypes.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <unistd.h>

#define PROGRAM "traffic"
#include "common.h"

enum {
    BLOCK = 65536,          /* bytes of one hashed block of a TCP stream */
    DATAGRAM_MAX = 65507,
    HEADER = 32,
    SMALL_MAX = 512,        /* a datagram up to here counts as small in the gap figures */
    MAGIC = 0x77726c61,
    MAGIC_END = 0x77726c62, /* number = how many were sent */
    END_REPEATS = 10,
    END_LINGER_MS = 250,    /* what is still on the way when the end is heard */
    BATCH = 64,
    NUMBERS_MAX = 1 << 26,
};

struct options {
    const char *mode, *to, *bind, *group, *interface;
    int port, min_size, max_size, small, full, flows;
    uint64_t bytes, count, seed, enough;
    double rate, pps, seconds, timeout, interval;
};

struct header {
    uint64_t hash;
    uint32_t magic, length;
    uint64_t number, sent_ns;
};

static void sleep_until(uint64_t at_ns)
{
    struct timespec t = {.tv_sec = (time_t)(at_ns / 1000000000u), .tv_nsec = (long)(at_ns % 1000000000u)};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

/* ---- random bytes and hash ------------------------------------------------------------------------------------ */

static uint64_t next_random(uint64_t *state)
{   /* splitmix64 */
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static void fill(uint8_t *out, size_t length, uint64_t seed)
{
    uint64_t state = seed, word;
    for (; length >= 8; length -= 8, out += 8) {
        word = next_random(&state);
        memcpy(out, &word, 8);
    }
    word = next_random(&state);
    memcpy(out, &word, length);
}

/* xxHash64 as specified in doc/xxhash_spec.md of the xxHash repository. */
static const uint64_t P1 = 0x9e3779b185ebca87u, P2 = 0xc2b2ae3d27d4eb4fu, P3 = 0x165667b19e3779f9u,
                      P4 = 0x85ebca77c2b2ae63u, P5 = 0x27d4eb2f165667c5u;

static uint64_t rotl(uint64_t x, int r) { return (x << r) | (x >> (64 - r)); }

static uint64_t load64(const uint8_t *p) { uint64_t v; memcpy(&v, p, 8); return v; }

static uint64_t hash_round(uint64_t acc, uint64_t lane) { return rotl(acc + lane * P2, 31) * P1; }

static uint64_t hash_merge(uint64_t acc, uint64_t lane) { return (acc ^ hash_round(0, lane)) * P1 + P4; }

static uint64_t hash_tail(uint64_t acc, const uint8_t *p, size_t left)
{
    for (; left >= 8; left -= 8, p += 8)
        acc = rotl(acc ^ hash_round(0, load64(p)), 27) * P1 + P4;
    if (left >= 4) {
        uint32_t v;
        memcpy(&v, p, 4);
        acc = rotl(acc ^ ((uint64_t)v * P1), 23) * P2 + P3;
        left -= 4, p += 4;
    }
    for (; left; left--, p++)
        acc = rotl(acc ^ ((uint64_t)*p * P5), 11) * P1;
    acc = (acc ^ (acc >> 33)) * P2;
    acc = (acc ^ (acc >> 29)) * P3;
    return acc ^ (acc >> 32);
}

static uint64_t hash64(const uint8_t *p, size_t length, uint64_t seed)
{
    size_t left = length;
    uint64_t acc = seed + P5;
    if (length >= 32) {
        uint64_t a = seed + P1 + P2, b = seed + P2, c = seed, d = seed - P1;
        for (; left >= 32; left -= 32, p += 32) {
            a = hash_round(a, load64(p)), b = hash_round(b, load64(p + 8));
            c = hash_round(c, load64(p + 16)), d = hash_round(d, load64(p + 24));
        }
        acc = rotl(a, 1) + rotl(b, 7) + rotl(c, 12) + rotl(d, 18);
        acc = hash_merge(hash_merge(hash_merge(hash_merge(acc, a), b), c), d);
    }
    return hash_tail(acc + length, p, left);
}

static int selftest(void)
{
    struct { const char *text; uint64_t want; } known[] = {
        {"", 0xef46db3751d8e999u}, {"a", 0xd24ec4f1a98c6e5bu}, {"abc", 0x44bc2cf5ad770999u},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (hash64((const uint8_t *)known[i].text, strlen(known[i].text), 0) != known[i].want) {
            printf("{\"ok\": false, \"text\": \"%s\"}\n", known[i].text);
            return 1;
        }
    printf("{\"ok\": true}\n");
    return 0;
}

/* ---- sockets -------------------------------------------------------------------------------------------------- */

static struct addrinfo *resolve(const char *address, int port, int type)
{
    char service[16];
    struct addrinfo *found, hints = {.ai_socktype = type, .ai_flags = AI_NUMERICHOST | AI_PASSIVE};
    snprintf(service, sizeof service, "%d", port);
    int status = getaddrinfo(address, service, &hints, &found);
    if (status) {
        fprintf(stderr, "traffic: address %s: %s\n", address, gai_strerror(status));
        exit(2);
    }
    return found;
}

static void set_option(int fd, int level, int name, int value)
{
    if (setsockopt(fd, level, name, &value, sizeof value))
        die("setsockopt");
}

static void ready(void) { printf("{\"ready\": true}\n"); fflush(stdout); }

static void join_group(int fd, int family, const struct options *o)
{
    unsigned index = o->interface ? if_nametoindex(o->interface) : 0;
    if (family == AF_INET) {
        struct ip_mreqn request = {.imr_ifindex = (int)index};
        inet_pton(AF_INET, o->group, &request.imr_multiaddr);
        if (setsockopt(fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, &request, sizeof request))
            die("join");
    } else {
        struct ipv6_mreq request = {.ipv6mr_interface = index};
        inet_pton(AF_INET6, o->group, &request.ipv6mr_multiaddr);
        if (setsockopt(fd, IPPROTO_IPV6, IPV6_JOIN_GROUP, &request, sizeof request))
            die("join");
    }
}

static void aim_group(int fd, int family, const struct options *o)
{   /* which interface multicast leaves by, and a hop limit that outlives a router */
    unsigned index = if_nametoindex(o->interface);
    if (family == AF_INET) {
        struct ip_mreqn request = {.imr_ifindex = (int)index};
        if (setsockopt(fd, IPPROTO_IP, IP_MULTICAST_IF, &request, sizeof request))
            die("multicast interface");
        set_option(fd, IPPROTO_IP, IP_MULTICAST_TTL, 8);
    } else {
        set_option(fd, IPPROTO_IPV6, IPV6_MULTICAST_IF, (int)index);
        set_option(fd, IPPROTO_IPV6, IPV6_MULTICAST_HOPS, 8);
    }
}

static int bound_socket(const struct options *o, int type)
{
    struct addrinfo *a = resolve(o->group ? o->group : o->bind, o->port, type);
    int fd = socket(a->ai_family, type, 0);
    if (fd < 0)
        die("socket");
    set_option(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    if (type == SOCK_DGRAM)     /* root may pass rmem_max: losses must be the network's, not the receiver's */
        set_option(fd, SOL_SOCKET, SO_RCVBUFFORCE, 32 << 20);
    if (bind(fd, a->ai_addr, a->ai_addrlen))
        die("bind");
    if (o->group)
        join_group(fd, a->ai_family, o);
    freeaddrinfo(a);
    return fd;
}

static int connected_socket(const struct options *o, int type)
{
    struct addrinfo *a = resolve(o->to, o->port, type);
    int fd = socket(a->ai_family, type, 0);
    if (fd < 0)
        die("socket");
    if (o->interface)
        aim_group(fd, a->ai_family, o);
    if (type == SOCK_DGRAM)
        set_option(fd, SOL_SOCKET, SO_SNDBUFFORCE, 8 << 20);
    if (connect(fd, a->ai_addr, a->ai_addrlen))
        die("connect");
    freeaddrinfo(a);
    return fd;
}

static bool wait_readable(int fd, double seconds)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, (int)(seconds * 1000)) > 0;
}

/* ---- TCP ------------------------------------------------------------------------------------------------------ */

static void seal_block(uint8_t *block, size_t length, uint64_t seed, uint64_t index)
{   /* a last block shorter than a hash carries none */
    fill(block, length, seed ^ (index * P1));
    if (length < 16)
        return;
    uint64_t h = hash64(block, length - 8, index);
    memcpy(block + length - 8, &h, 8);
}

static bool block_is_whole(const uint8_t *block, size_t length, uint64_t index)
{
    return length < 16 || load64(block + length - 8) == hash64(block, length - 8, index);
}

static void write_all(int fd, const uint8_t *data, size_t length)
{
    while (length) {
        ssize_t n = send(fd, data, length, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR && !stopped)
            continue;
        if (n < 0)
            die("send");
        data += n, length -= (size_t)n;
    }
}

static int tcp_send(const struct options *o)
{
    int fd = connected_socket(o, SOCK_STREAM);
    size_t chunk = o->rate > 0 ? 4096 : BLOCK;
    uint8_t block[BLOCK], answer;
    uint64_t start = now_ns(), sent = 0, hash = 0, index = 0, until = o->seconds > 0 ? start + (uint64_t)(o->seconds * 1e9) : 0;
    while (!stopped && (until ? now_ns() < until : sent < o->bytes)) {
        size_t length = until || o->bytes - sent > BLOCK ? BLOCK : (size_t)(o->bytes - sent);
        seal_block(block, length, o->seed, index);
        hash = hash64(block, length, hash);
        for (size_t at = 0; at < length; at += chunk) {
            if (o->rate > 0)
                sleep_until(start + (uint64_t)((double)(sent + at) * 8e3 / o->rate));
            write_all(fd, block + at, length - at < chunk ? length - at : chunk);
        }
        sent += length, index++;
    }
    shutdown(fd, SHUT_WR);
    while (recv(fd, &answer, 1, 0) > 0) {}   /* the receiver closes when it has read all */
    double seconds = (double)(now_ns() - start) / 1e9;
    printf("{\"bytes\": %" PRIu64 ", \"seconds\": %.6f, \"mbit_s\": %.1f, \"hash\": \"%016" PRIx64 "\"}\n",
           sent, seconds, (double)sent * 8 / 1e6 / seconds, hash);
    return 0;
}

static int tcp_recv(const struct options *o)
{
    int listener = bound_socket(o, SOCK_STREAM);
    if (listen(listener, 1))
        die("listen");
    ready();
    if (!wait_readable(listener, o->timeout))
        die("no connection");
    int fd = accept(listener, NULL, NULL);
    if (fd < 0)
        die("accept");
    uint8_t block[BLOCK];
    uint64_t start = now_ns(), last = start, gap = 0, total = 0, hash = 0, index = 0, corrupt = 0;
    bool timed_out = false, broken = false;
    for (;;) {
        size_t have = 0;
        ssize_t n = 1;
        while (have < BLOCK && n > 0) {
            if (!wait_readable(fd, o->timeout)) { timed_out = true; break; }
            n = recv(fd, block + have, BLOCK - have, 0);
            if (n < 0) { broken = true; break; }
            uint64_t at = now_ns();
            gap = at - last > gap ? at - last : gap, last = at;
            have += (size_t)n;
        }
        if (have) {
            corrupt += !block_is_whole(block, have, index++);
            hash = hash64(block, have, hash), total += have;
        }
        if (n <= 0 || timed_out)
            break;
    }
    double seconds = (double)(now_ns() - start) / 1e9;
    printf("{\"bytes\": %" PRIu64 ", \"seconds\": %.6f, \"mbit_s\": %.1f, \"hash\": \"%016" PRIx64 "\", \"corrupt\": %" PRIu64
           ", \"gap_ms\": %.1f, \"timed_out\": %s, \"broken\": %s}\n", total, seconds, (double)total * 8 / 1e6 / seconds, hash,
           corrupt, (double)gap / 1e6, timed_out ? "true" : "false", broken ? "true" : "false");
    return 0;
}

/* ---- UDP datagrams -------------------------------------------------------------------------------------------- */

static size_t make_datagram(uint8_t *out, size_t length, uint32_t magic, uint64_t number, uint64_t seed)
{
    struct header h = {.magic = magic, .length = (uint32_t)length, .number = number, .sent_ns = now_ns()};
    fill(out + HEADER, length - HEADER, seed ^ (number * P3));
    memcpy(out, &h, HEADER);
    h.hash = hash64(out + 8, length - 8, 0);
    memcpy(out, &h.hash, 8);
    return length;
}

static size_t random_size(const struct options *o, uint64_t *state)
{   /* a quarter around the usual MTUs, where the edges are; the rest anywhere */
    uint64_t r = next_random(state);
    size_t low = (size_t)o->min_size, high = (size_t)o->max_size;
    if (r % 4 == 0 && high > 2000)
        high = 2000;
    return low + (r >> 8) % (high - low + 1);
}

struct sender { int fd; uint64_t sent, bytes, errors; };

static void send_datagram(struct sender *s, const uint8_t *data, size_t length)
{   /* an unreachable moment is the network's business and is counted, never an end */
    if (send(s->fd, data, length, MSG_NOSIGNAL) < 0)
        s->errors++;
    s->sent++, s->bytes += length;
}

static int finish_sender(struct sender *s, uint64_t start, uint64_t seed)
{
    uint8_t end[HEADER + 8];
    double seconds = (double)(now_ns() - start) / 1e9;
    for (int i = 0; i < END_REPEATS; i++) {
        make_datagram(end, sizeof end, MAGIC_END, s->sent, seed);
        (void)!send(s->fd, end, sizeof end, MSG_NOSIGNAL);
        sleep_until(now_ns() + 20000000u);
    }
    printf("{\"sent\": %" PRIu64 ", \"bytes\": %" PRIu64 ", \"errors\": %" PRIu64 ", \"seconds\": %.6f, \"mbit_s\": %.1f}\n",
           s->sent, s->bytes, s->errors, seconds, (double)s->bytes * 8 / 1e6 / seconds);
    return 0;
}

static int udp_send(const struct options *o)
{
    static uint8_t datagram[DATAGRAM_MAX];
    struct sender s = {.fd = connected_socket(o, SOCK_DGRAM)};
    uint64_t start = now_ns(), state = o->seed, until = o->seconds > 0 ? start + (uint64_t)(o->seconds * 1e9) : UINT64_MAX;
    while (!stopped && s.sent < o->count && now_ns() < until) {
        size_t length = random_size(o, &state);
        double due = o->pps > 0 ? (double)s.sent * 1e9 / o->pps : o->rate > 0 ? (double)s.bytes * 8e3 / o->rate : 0;
        sleep_until(start + (uint64_t)due);
        make_datagram(datagram, length, MAGIC, s.sent, o->seed);
        send_datagram(&s, datagram, length);
    }
    return finish_sender(&s, start, o->seed);
}

static int stream_send(const struct options *o)
{
    static uint8_t datagram[DATAGRAM_MAX];
    struct sender s = {.fd = connected_socket(o, SOCK_DGRAM)};
    uint64_t start = now_ns(), until = start + (uint64_t)(o->seconds * 1e9);
    while (!stopped && now_ns() < until) {
        size_t length = (size_t)(s.sent % 2 ? o->full : o->small);
        make_datagram(datagram, length, MAGIC, s.sent, o->seed);
        send_datagram(&s, datagram, length);
        sleep_until(start + (uint64_t)((double)s.sent * o->interval * 1e6));
    }
    return finish_sender(&s, start, o->seed);
}

struct gaps { uint64_t any, small, full, any_at, small_at, full_at; };

static void note(uint64_t *gap, uint64_t *last, uint64_t at)
{
    if (*last && at > *last && at - *last > *gap)
        *gap = at - *last;
    *last = at;
}

struct tally { uint64_t received, unique, corrupt, duplicated, reordered, bytes, sent, highest, delay_max; struct gaps gaps; };

static bool datagram_is_whole_untrusted(const uint8_t *data, size_t length, struct header *h)
{
    if (length < HEADER)
        return false;
    memcpy(h, data, HEADER);
    return h->length == length && (h->magic == MAGIC || h->magic == MAGIC_END) && h->number < NUMBERS_MAX
        && h->hash == hash64(data + 8, length - 8, 0);
}

static void count_datagram(struct tally *t, uint8_t *seen, const struct header *h, uint64_t at)
{
    uint8_t bit = (uint8_t)(1u << (h->number & 7));
    t->received++, t->bytes += h->length;
    t->delay_max = at - h->sent_ns > t->delay_max ? at - h->sent_ns : t->delay_max;
    if (seen[h->number >> 3] & bit) {
        t->duplicated++;
        return;
    }
    seen[h->number >> 3] |= bit;
    t->unique++;
    if (t->unique > 1 && h->number < t->highest)
        t->reordered++;
    t->highest = h->number > t->highest ? h->number : t->highest;
    note(&t->gaps.any, &t->gaps.any_at, at);
    if (h->length <= SMALL_MAX)
        note(&t->gaps.small, &t->gaps.small_at, at);
    else
        note(&t->gaps.full, &t->gaps.full_at, at);
}

static void close_gaps(struct gaps *g, uint64_t end)
{   /* silence up to the end counts too */
    uint64_t last = g->any_at;
    if (last) note(&g->any, &last, end);
    if ((last = g->small_at)) note(&g->small, &last, end);
    if ((last = g->full_at)) note(&g->full, &last, end);
}

static int udp_recv(const struct options *o)
{
    static uint8_t datagram[DATAGRAM_MAX + 1];
    int fd = bound_socket(o, SOCK_DGRAM);
    uint8_t *seen = calloc(NUMBERS_MAX / 8, 1);
    struct tally t = {0};
    struct header h;
    uint64_t end_at = 0, first = 0;
    bool timed_out = false;
    ready();
    while (!stopped && !(o->enough && t.unique >= o->enough)) {
        double patience = end_at ? (double)END_LINGER_MS / 1e3 : o->timeout;
        if (!wait_readable(fd, patience)) { timed_out = !end_at && !stopped; break; }
        ssize_t n = recv(fd, datagram, sizeof datagram, 0);
        uint64_t at = now_ns();
        if (n < 0)
            continue;
        first = first ? first : at;
        if (!datagram_is_whole_untrusted(datagram, (size_t)n, &h))
            t.corrupt++;
        else if (h.magic == MAGIC)
            count_datagram(&t, seen, &h, at);
        else
            t.sent = h.number, end_at = end_at ? end_at : at;
    }
    close_gaps(&t.gaps, end_at ? end_at : now_ns());
    uint64_t total = t.sent ? t.sent : o->count;
    double seconds = (double)((end_at ? end_at : now_ns()) - first) / 1e9;
    printf("{\"received\": %" PRIu64 ", \"unique\": %" PRIu64 ", \"sent\": %" PRIu64 ", \"lost\": %" PRIu64 ", \"corrupt\": %" PRIu64
           ", \"duplicated\": %" PRIu64 ", \"reordered\": %" PRIu64 ", \"bytes\": %" PRIu64 ", \"seconds\": %.6f, ",
           t.received, t.unique, total, total > t.unique ? total - t.unique : 0, t.corrupt, t.duplicated, t.reordered, t.bytes, seconds);
    printf("\"gap_ms\": %.1f, \"gap_small_ms\": %.1f, \"gap_full_ms\": %.1f, \"delay_max_ms\": %.2f, \"timed_out\": %s}\n",
           (double)t.gaps.any / 1e6, (double)t.gaps.small / 1e6, (double)t.gaps.full / 1e6, (double)t.delay_max / 1e6,
           timed_out ? "true" : "false");
    return 0;
}

/* ---- floods --------------------------------------------------------------------------------------------------- */

static int pps_send(const struct options *o)
{
    static uint8_t payload[DATAGRAM_MAX];
    int fds[256], flows = o->flows < 1 ? 1 : o->flows > 256 ? 256 : o->flows;
    struct iovec iov = {.iov_base = payload, .iov_len = (size_t)o->small};
    struct mmsghdr batch[BATCH] = {0};
    for (int i = 0; i < flows; i++)
        fds[i] = connected_socket(o, SOCK_DGRAM);
    for (int i = 0; i < BATCH; i++)
        batch[i].msg_hdr = (struct msghdr){.msg_iov = &iov, .msg_iovlen = 1};
    uint64_t start = now_ns(), until = start + (uint64_t)(o->seconds * 1e9), sent = 0, errors = 0;
    for (int flow = 0; !stopped && now_ns() < until; flow = (flow + 1) % flows) {
        if (o->pps > 0)
            sleep_until(start + (uint64_t)((double)sent * 1e9 / o->pps));
        int n = sendmmsg(fds[flow], batch, flows > 1 ? BATCH / 8 : BATCH, 0);
        sent += n > 0 ? (uint64_t)n : 0, errors += n < 0;
    }
    double seconds = (double)(now_ns() - start) / 1e9;
    printf("{\"sent\": %" PRIu64 ", \"errors\": %" PRIu64 ", \"seconds\": %.6f, \"pps\": %.0f}\n", sent, errors, seconds,
           (double)sent / seconds);
    return 0;
}

static int pps_recv(const struct options *o)
{   /* from the first datagram on, until nothing came for the timeout */
    static uint8_t buffers[BATCH][2048];
    struct iovec iov[BATCH];
    struct mmsghdr batch[BATCH] = {0};
    int fd = bound_socket(o, SOCK_DGRAM);
    uint64_t first = 0, last = 0, received = 0;
    double patience = 10;
    for (int i = 0; i < BATCH; i++) {
        iov[i] = (struct iovec){buffers[i], sizeof buffers[i]};
        batch[i].msg_hdr = (struct msghdr){.msg_iov = &iov[i], .msg_iovlen = 1};
    }
    ready();
    while (!stopped && wait_readable(fd, patience)) {
        int n = recvmmsg(fd, batch, BATCH, MSG_DONTWAIT, NULL);
        if (n <= 0)
            continue;
        last = now_ns(), received += (uint64_t)n, patience = o->timeout;
        first = first ? first : last;
    }
    double seconds = last > first ? (double)(last - first) / 1e9 : 1;
    printf("{\"received\": %" PRIu64 ", \"seconds\": %.6f, \"pps\": %.0f}\n", received, seconds, (double)received / seconds);
    return 0;
}

/* ---- round trips ---------------------------------------------------------------------------------------------- */

static int echo(const struct options *o)
{
    uint8_t buffer[2048];
    struct sockaddr_storage from;
    int fd = bound_socket(o, SOCK_DGRAM);
    ready();
    while (!stopped) {
        socklen_t size = sizeof from;
        ssize_t n = recvfrom(fd, buffer, sizeof buffer, 0, (struct sockaddr *)&from, &size);
        if (n >= 0)
            (void)!sendto(fd, buffer, (size_t)n, 0, (struct sockaddr *)&from, size);
    }
    printf("{\"ok\": true}\n");
    return 0;
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static int rtt(const struct options *o)
{   /* one datagram on the way at a time, --interval ms apart; an answer is waited for at most 1 s */
    uint8_t data[64] = {0}, back[64];
    int fd = connected_socket(o, SOCK_DGRAM);
    uint64_t *times = calloc(o->count, sizeof *times), have = 0, lost = 0, next = now_ns();
    for (uint64_t i = 0; i < o->count && !stopped; i++, next += (uint64_t)(o->interval * 1e6)) {
        if (o->interval > 0)
            sleep_until(next);
        memcpy(data, &i, sizeof i);
        uint64_t start = now_ns();
        (void)!send(fd, data, sizeof data, 0);
        bool answered = false;
        while (!answered && wait_readable(fd, 1))
            answered = recv(fd, back, sizeof back, 0) == sizeof data && !memcmp(back, data, sizeof i);
        if (answered)
            times[have++] = now_ns() - start;
        else
            lost++;
    }
    qsort(times, have, sizeof *times, by_value);
    if (have)
        printf("{\"count\": %" PRIu64 ", \"lost\": %" PRIu64 ", \"p50_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f"
               ", \"max_us\": %.1f}\n", have, lost,
               (double)times[have / 2] / 1e3, (double)times[have * 99 / 100] / 1e3,
               (double)times[have * 999 / 1000] / 1e3, (double)times[have - 1] / 1e3);
    else
        printf("{\"count\": 0, \"lost\": %" PRIu64 "}\n", lost);
    return 0;
}

/* ---- command line --------------------------------------------------------------------------------------------- */

static void parse(struct options *o, int argc, char **argv)
{
    enum { TO = 1, BIND, PORT, BYTES, COUNT, SEED, RATE, PPS, SECONDS, TIMEOUT, INTERVAL, MIN, MAX, SMALL, FULL, FLOWS, GROUP, IFACE, ENOUGH };
    static const struct option names[] = {
        {"to", 1, 0, TO}, {"bind", 1, 0, BIND}, {"port", 1, 0, PORT}, {"bytes", 1, 0, BYTES}, {"count", 1, 0, COUNT},
        {"seed", 1, 0, SEED}, {"rate", 1, 0, RATE}, {"pps", 1, 0, PPS}, {"seconds", 1, 0, SECONDS}, {"timeout", 1, 0, TIMEOUT},
        {"interval", 1, 0, INTERVAL}, {"min-size", 1, 0, MIN}, {"max-size", 1, 0, MAX}, {"small", 1, 0, SMALL}, {"full", 1, 0, FULL},
        {"flows", 1, 0, FLOWS}, {"group", 1, 0, GROUP}, {"interface", 1, 0, IFACE},
        {"enough", 1, 0, ENOUGH}, {0},
    };
    int c;
    while ((c = getopt_long(argc, argv, "", names, NULL)) > 0)
        switch (c) {
        case TO: o->to = optarg; break;
        case BIND: o->bind = optarg; break;
        case PORT: o->port = atoi(optarg); break;
        case BYTES: o->bytes = strtoull(optarg, NULL, 0); break;
        case COUNT: o->count = strtoull(optarg, NULL, 0); break;
        case SEED: o->seed = strtoull(optarg, NULL, 0); break;
        case RATE: o->rate = atof(optarg); break;
        case PPS: o->pps = atof(optarg); break;
        case SECONDS: o->seconds = atof(optarg); break;
        case TIMEOUT: o->timeout = atof(optarg); break;
        case INTERVAL: o->interval = atof(optarg); break;
        case MIN: o->min_size = atoi(optarg); break;
        case MAX: o->max_size = atoi(optarg); break;
        case SMALL: o->small = atoi(optarg); break;
        case FULL: o->full = atoi(optarg); break;
        case FLOWS: o->flows = atoi(optarg); break;
        case GROUP: o->group = optarg; break;
        case ENOUGH: o->enough = strtoull(optarg, NULL, 0); break;
        case IFACE: o->interface = optarg; break;
        default: exit(2);
        }
}

int main(int argc, char **argv)
{
    static const struct { const char *name; int (*run)(const struct options *); } modes[] = {
        {"tcp-send", tcp_send}, {"tcp-recv", tcp_recv}, {"udp-send", udp_send}, {"udp-recv", udp_recv},
        {"stream-send", stream_send}, {"mcast-send", udp_send}, {"mcast-recv", udp_recv}, {"pps-send", pps_send},
        {"pps-recv", pps_recv}, {"echo", echo}, {"rtt", rtt},
    };
    struct options o = {.bind = "::", .port = 7000, .count = 1000, .seed = 1, .timeout = 10, .interval = 10, .min_size = HEADER,
                        .max_size = 1200, .small = 64, .full = 1200, .flows = 1};
    if (argc < 2) {
        fprintf(stderr, "usage: traffic MODE [--option value]...\n");
        return 2;
    }
    struct sigaction stop = {.sa_handler = on_signal};   /* no SA_RESTART: blocking calls return */
    sigaction(SIGTERM, &stop, NULL);
    sigaction(SIGINT, &stop, NULL);
    if (!strcmp(argv[1], "selftest"))
        return selftest();
    parse(&o, argc - 1, argv + 1);
    if (o.min_size < HEADER || o.max_size > DATAGRAM_MAX || o.min_size > o.max_size || o.full > DATAGRAM_MAX || o.count > NUMBERS_MAX) {
        fprintf(stderr, "traffic: sizes are %d to %d, counts up to %d\n", HEADER, DATAGRAM_MAX, NUMBERS_MAX);
        return 2;
    }
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
        if (!strcmp(argv[1], modes[i].name))
            return modes[i].run(&o);
    fprintf(stderr, "traffic: no mode %s\n", argv[1]);
    return 2;
}
