/* Sends datagrams of random bytes: stranger ADDRESS PORT COUNT SEED INDEX RATE. Built by stranger.py.
 *
 * RATE is in datagrams a second, 0 as fast as it goes.
 * Half of them begin as something that the fast path would look at more closely: a data header with a true receiver
 * index, a handshake head. It must not know a key. The kernel may drop what the receiver is too slow for. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum { BATCH = 64, SIZE = 1500 };

static uint64_t state;

static uint64_t next(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static size_t fill(uint8_t *p, uint32_t index) {
    size_t n = next() % 5 == 0 ? next() % SIZE : next() % 100;
    for (size_t i = 0; i < n; i += 8) {
        uint64_t v = next();
        memcpy(p + i, &v, n - i < 8 ? n - i : 8);
    }
    if (n < 16 || next() & 1)
        return n;
    static const uint8_t types[] = {1, 2, 4, 4, 4, 4, 5, 6};
    p[0] = types[next() & 7];
    p[1] = p[0] == 4 ? next() & 1 : 1;
    p[2] = p[3] = 0;
    uint32_t value = htonl(p[0] == 4 ? index : 7);
    memcpy(p + 4, &value, 4);
    memset(p + 8, 0, 7);
    return n;
}

/* Sleeps until `sent` datagrams at `rate` are due since `start`. */
static void pace(const struct timespec *start, long sent, long rate) {
    if (rate <= 0)
        return;
    int64_t at = start->tv_sec * 1000000000LL + start->tv_nsec + sent * 1000000000LL / rate;
    struct timespec due = {.tv_sec = at / 1000000000, .tv_nsec = at % 1000000000};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
}

int main(int argc, char **argv) {
    static uint8_t data[BATCH][SIZE + 8];
    struct iovec iov[BATCH];
    struct mmsghdr messages[BATCH];
    if (argc != 7)
        return 2;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[2]))};
    long count = atol(argv[3]);
    state = strtoull(argv[4], NULL, 10) * 2654435761u + 1;
    uint32_t index = (uint32_t)strtoul(argv[5], NULL, 0);
    long rate = atol(argv[6]);
    if (inet_pton(AF_INET, argv[1], &to.sin_addr) != 1)
        return 2;
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) < 0)
        return perror("socket"), 1;
    memset(messages, 0, sizeof messages);
    struct timespec start;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (long sent = 0; sent < count; sent += BATCH) {
        pace(&start, sent, rate);
        int n = count - sent < BATCH ? (int)(count - sent) : BATCH;
        for (int i = 0; i < n; i++) {
            iov[i].iov_base = data[i];
            iov[i].iov_len = fill(data[i], index);
            messages[i].msg_hdr.msg_iov = &iov[i];
            messages[i].msg_hdr.msg_iovlen = 1;
        }
        for (int done = 0, got; done < n; done += got)
            if ((got = sendmmsg(fd, messages + done, n - done, 0)) < 0)
                return perror("sendmmsg"), 1;
    }
    uint8_t answer[64];
    return recv(fd, answer, sizeof answer, MSG_DONTWAIT) >= 0 ? 3 : 0; /* 3: somebody answered */
}
