/*
 * relay: a wire that loses, repeats and reorders. Joins two interfaces frame by frame (kernels here have no netem).
 *
 *   relay IF_A IF_B LOSS DUPLICATE REORDER DELAY_US SEED     shares in parts per million, both directions alike
 *
 * A line "LOSS DUPLICATE REORDER DELAY_US" on stdin changes them while it runs. Prints {"ready": true} when it
 * forwards, and its counters as one JSON object when it is told to stop. It knows nothing of what it carries; frames
 * must be of wire size with finished checksums, so both interfaces are bare. Called by wire.py.
 *
 * A reordered frame is held until 1 to 8 later frames of its direction have passed, at most HOLD_NS.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <arpa/inet.h>
#include <unistd.h>

#define PROGRAM "relay"
#include "common.h"

enum { FRAME_MAX = 16384, BATCH = 64, QUEUE = 4096, HOLD_NS = 3000000, PPM = 1000000, PASSED_MAX = 8, EMIT_TRIES = 50 };

struct faults { uint32_t loss, duplicate, reorder, delay_us; };

struct held { uint8_t *data; size_t length; uint64_t at_ns; int later; bool reordered; };

struct direction {
    int from, to;
    struct held queue[QUEUE];   /* frames on their way, unordered; count of them in `used` */
    int used;
    uint64_t frames, lost, duplicated, reordered, overflow;
};

static struct faults faults;
static uint64_t random_state;

static uint32_t draw(uint32_t below)
{   /* splitmix64 */
    uint64_t z = (random_state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)((z ^ (z >> 31)) % below);
}

static int packet_socket(const char *interface)
{
    int one = 1, size = 16 << 20, fd = socket(AF_PACKET, SOCK_RAW, 0);
    struct sockaddr_ll a = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL), .sll_ifindex = (int)if_nametoindex(interface)};
    if (fd < 0 || !a.sll_ifindex)
        die(interface);
    if (setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof one))
        die("PACKET_IGNORE_OUTGOING");
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size))
        die("SO_RCVBUFFORCE");
    if (bind(fd, (struct sockaddr *)&a, sizeof a))
        die("bind");
    return fd;
}

static void stay_on_cpu(void)
{   /* veth queues per CPU: a relay that moved would reorder by itself */
    cpu_set_t one;
    int cpu = sched_getcpu();
    CPU_ZERO(&one);
    CPU_SET(cpu < 0 ? 0 : cpu, &one);
    sched_setaffinity(0, sizeof one, &one);
}

static void emit(struct direction *d, const uint8_t *data, size_t length)
{   /* where whoever empties the veth's ring has no CPU, the frames wait in our receive buffer */
    for (int tries = 0; send(d->to, data, length, 0) < 0; tries++) {
        if (errno != ENOBUFS || tries == EMIT_TRIES) {
            d->overflow++;
            return;
        }
        poll(NULL, 0, 1);
    }
}

static void hold(struct direction *d, const uint8_t *data, size_t length, uint64_t at_ns, bool reordered)
{
    if (d->used == QUEUE) {
        d->overflow++;
        return;
    }
    struct held *h = &d->queue[d->used++];
    *h = (struct held){.data = malloc(length), .length = length, .at_ns = at_ns, .later = 1 + (int)draw(PASSED_MAX), .reordered = reordered};
    memcpy(h->data, data, length);
}

static void release(struct direction *d, uint64_t now, int passed)
{   /* what is due goes out in the order it came in */
    int kept = 0;
    for (int i = 0; i < d->used; i++) {
        struct held h = d->queue[i];
        h.later -= h.reordered ? passed : 0;
        if (h.at_ns <= now || (h.reordered && h.later <= 0)) {
            emit(d, h.data, h.length);
            free(h.data);
        } else {
            d->queue[kept++] = h;
        }
    }
    d->used = kept;
}

static void carry(struct direction *d, const uint8_t *data, size_t length, uint64_t now)
{
    uint64_t delay = (uint64_t)faults.delay_us * 1000;
    d->frames++;
    if (draw(PPM) < faults.loss) {
        d->lost++;
        return;
    }
    bool again = draw(PPM) < faults.duplicate;
    bool late = draw(PPM) < faults.reorder;
    d->duplicated += again, d->reordered += late;
    for (int copies = again ? 2 : 1; copies; copies--)
        if (late)
            hold(d, data, length, now + delay + HOLD_NS, true);
        else if (delay)
            hold(d, data, length, now + delay, false);
        else
            emit(d, data, length);
    if (!late)
        release(d, now, 1);
}

static void drain(struct direction *d)
{
    static uint8_t buffers[BATCH][FRAME_MAX];
    static struct iovec iov[BATCH];
    static struct mmsghdr batch[BATCH];
    for (int i = 0; i < BATCH; i++) {
        iov[i] = (struct iovec){buffers[i], FRAME_MAX};
        batch[i].msg_hdr = (struct msghdr){.msg_iov = &iov[i], .msg_iovlen = 1};
    }
    int n = recvmmsg(d->from, batch, BATCH, MSG_DONTWAIT, NULL);
    for (int i = 0; i < n; i++)
        carry(d, buffers[i], batch[i].msg_len, now_ns());
}

static void read_command(void)
{
    char line[128];
    struct faults next;
    ssize_t n = read(0, line, sizeof line - 1);
    if (n <= 0) {       /* whoever ran us is gone */
        stopped = 1;
        return;
    }
    line[n] = 0;
    if (sscanf(line, "%" SCNu32 " %" SCNu32 " %" SCNu32 " %" SCNu32, &next.loss, &next.duplicate, &next.reorder, &next.delay_us) == 4)
        faults = next;
    printf("{\"changed\": true}\n");
    fflush(stdout);
}

static uint64_t kernel_drops(int fd)
{
    struct tpacket_stats stats = {0};
    socklen_t size = sizeof stats;
    getsockopt(fd, SOL_PACKET, PACKET_STATISTICS, &stats, &size);
    return stats.tp_drops;
}

static void report(const struct direction *d, const char *name, const char *end)
{
    printf("\"%s\": {\"frames\": %" PRIu64 ", \"lost\": %" PRIu64 ", \"duplicated\": %" PRIu64 ", \"reordered\": %" PRIu64
           ", \"overflow\": %" PRIu64 "}%s", name, d->frames, d->lost, d->duplicated, d->reordered, d->overflow + kernel_drops(d->from), end);
}

int main(int argc, char **argv)
{
    static struct direction ab, ba;
    if (argc != 8) {
        fprintf(stderr, "usage: relay IF_A IF_B LOSS DUPLICATE REORDER DELAY_US SEED\n");
        return 2;
    }
    faults = (struct faults){(uint32_t)atoi(argv[3]), (uint32_t)atoi(argv[4]), (uint32_t)atoi(argv[5]), (uint32_t)atoi(argv[6])};
    random_state = strtoull(argv[7], NULL, 0);
    struct sigaction stop = {.sa_handler = on_signal};
    sigaction(SIGTERM, &stop, NULL);
    signal(SIGINT, SIG_IGN);
    int a = packet_socket(argv[1]), b = packet_socket(argv[2]);
    stay_on_cpu();
    ab.from = ba.to = a, ab.to = ba.from = b;
    printf("{\"ready\": true}\n");
    fflush(stdout);
    struct pollfd p[3] = {{.fd = a, .events = POLLIN}, {.fd = b, .events = POLLIN}, {.fd = 0, .events = POLLIN}};
    while (!stopped) {
        if (poll(p, 3, ab.used + ba.used ? 1 : -1) < 0)
            continue;
        if (p[0].revents)
            drain(&ab);
        if (p[1].revents)
            drain(&ba);
        if (p[2].revents)
            read_command();
        release(&ab, now_ns(), 0);
        release(&ba, now_ns(), 0);
    }
    printf("{");
    report(&ab, "a_to_b", ", ");
    report(&ba, "b_to_a", "}\n");
    return 0;
}
