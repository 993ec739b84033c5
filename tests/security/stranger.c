/* Sends datagrams of random bytes to 127.0.0.1: stranger PORT COUNT SEED INDEX. For test_fastpath_stranger.py.
 *
 * Half of them begin as something that the fast path would look at more closely: a data header with a true receiver
 * index, a handshake head. It must not know a key. The kernel may drop what the receiver is too slow for. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

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

int main(int argc, char **argv) {
    static uint8_t data[BATCH][SIZE + 8];
    struct iovec iov[BATCH];
    struct mmsghdr messages[BATCH];
    if (argc != 5)
        return 2;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1]))};
    long count = atol(argv[2]);
    state = strtoull(argv[3], NULL, 10) * 2654435761u + 1;
    uint32_t index = (uint32_t)strtoul(argv[4], NULL, 0);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) < 0)
        return perror("socket"), 1;
    memset(messages, 0, sizeof messages);
    for (long sent = 0; sent < count; sent += BATCH) {
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
