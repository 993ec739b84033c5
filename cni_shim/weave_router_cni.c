/* weave-router-cni: what the container runtime starts for every pod, once per verb. A relay to the router.
 *
 * It does what only a root process on the host can do: it enters the pod's network namespace, opens a netlink socket
 * there, sets the pod's sysctls, and hands socket and namespace to the router (attach.sock, SCM_RIGHTS) with the
 * runtime's environment and configuration. Alone it answers VERSION, and STATUS from the router's `alive` file. A DEL
 * that the router does not carry out is written to a journal, which the router empties before it serves.
 *
 * It shares no code with the router, needs nothing on the host and must not know addresses, routes or veths. Of the
 * configuration it reads cniVersion, socket and journal; the router judges the rest.
 *
 * Exit status 0: done; 1: a CNI error object is on stdout. Also `weave-router-cni probe live|ready [SOCKET]`.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

enum {
    CONFIG_MAX = 1 << 20,  /* bytes of stdin */
    REQUEST_MAX = 2 << 20, /* limits.HANDOVER_REQUEST_BYTES */
    REPLY_MAX = 4 << 20,
    STDIN_MS = 10000,
    WAIT_MS = 10000,   /* ADD and CHECK wait so long for a router */
    ANSWER_MS = 30000, /* and so long for its answer */
    DEL_MS = 10000,    /* then the DEL goes to the journal */
    AGAIN_MS = 2000,   /* the second try, when the DEL is in the journal */
    RETRY_MS = 20,
    ALIVE_SECONDS = 60,
    CONTAINER_ID_MAX = 200, /* limits.CNI_CONTAINER_ID_MAX */
    NSFS_KIND = 0x6e736673, /* NSFS_MAGIC, linux/magic.h */
    ROUTE = 0,              /* NETLINK_ROUTE, linux/netlink.h: musl brings no kernel headers */
};

enum code { /* of the specification */
    INCOMPATIBLE = 1, UNKNOWN_CONTAINER = 3, BAD_ENVIRONMENT = 4, IO_FAILURE = 5, UNDECODABLE = 6, BAD_CONFIG = 7,
    TRY_LATER = 11, UNAVAILABLE = 50, INTERNAL = 999,
};

static const char *const VERSIONS[] = {"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"};
enum { VERSION_COUNT = sizeof VERSIONS / sizeof *VERSIONS, FIRST_CHECK = 2, FIRST_GC = 4 };

static const char *const SYSCTLS[][2] = { /* handover_driver.POD_SYSCTLS, and why is said there */
    {"/proc/sys/net/ipv6/conf/default/disable_ipv6", "0"},
    {"/proc/sys/net/ipv6/conf/default/accept_ra", "0"},
    {"/proc/sys/net/ipv6/conf/default/accept_dad", "0"},
    {"/proc/sys/net/ipv4/conf/default/arp_notify", "1"},
    {"/proc/sys/net/ipv6/conf/default/ndisc_notify", "1"},
};

struct text { const char *at; size_t len; }; /* borrowed */
struct buffer { char *at; size_t len, size; bool over; };

static char socket_path[sizeof((struct sockaddr_un *)0)->sun_path] = "/run/weave-router/attach.sock";
static bool own_only; /* a probe speaks of its own pod's router */
static char journal_path[256] = "/var/lib/weave-router/cni-journal";
static int version = VERSION_COUNT - 1; /* index of the configuration's in VERSIONS */
static char config[CONFIG_MAX + 1], request_room[REQUEST_MAX], reply[REPLY_MAX + 1];
static size_t config_len, reply_len;

/* -- output ---------------------------------------------------------------------------------------------------- */

static bool put(int fd, const char *at, size_t len) {
    for (ssize_t done; len > 0; at += done, len -= (size_t)done)
        if ((done = write(fd, at, len)) <= 0) return false;
    return true;
}

__attribute__((format(printf, 2, 3))) static void add(struct buffer *b, const char *format, ...) {
    va_list words;
    va_start(words, format);
    int len = vsnprintf(b->at + b->len, b->size - b->len, format, words);
    va_end(words);
    if (len < 0 || (size_t)len >= b->size - b->len) b->over = true;
    else b->len += (size_t)len;
}

/* A JSON string of any bytes: what is not printable ASCII becomes \u00XX, which the router turns back into bytes. */
static void add_string(struct buffer *b, const char *text, size_t len) {
    add(b, "\"");
    for (const char *end = text + len; text < end && !b->over; text++) {
        if (*text < ' ' || *text > '~') add(b, "\\u%04x", (unsigned char)*text);
        else if (*text == '"' || *text == '\\') add(b, "\\%c", *text);
        else if (b->size - b->len < 2) b->over = true;
        else b->at[b->len++] = *text;
    }
    add(b, "\"");
}

/* The one way to fail: a CNI error object on stdout, exit status 1. */
__attribute__((noreturn, format(printf, 2, 3))) static void fail(enum code code, const char *format, ...) {
    char sentence[1024], object[8192];
    struct buffer b = {object, 0, sizeof object, false};
    va_list words;
    va_start(words, format);
    vsnprintf(sentence, sizeof sentence, format, words);
    va_end(words);
    add(&b, "{\"cniVersion\":\"%s\",\"code\":%d,\"msg\":", VERSIONS[version], code);
    add_string(&b, sentence, strlen(sentence));
    add(&b, "}\n");
    put(STDOUT_FILENO, b.at, b.len);
    exit(1);
}

/* -- JSON ------------------------------------------------------------------------------------------------------ */

struct member { const char *name; struct text value; int seen; }; /* value: borrowed, as written, quotes included */

static void remember(struct member *m, struct text name, const char *from, const char *end) {
    while (from < end && strchr(" \t\r\n", *from)) from++;
    while (end > from && strchr(" \t\r\n", end[-1])) end--;
    for (; name.len > 2 && m->name; m++)
        if (name.len == strlen(m->name) + 2 && memcmp(name.at + 1, m->name, name.len - 2) == 0) {
            m->value = (struct text){from, (size_t)(end - from)};
            m->seen++;
        }
}

/* One pass that knows strings and brackets only, and keeps the outermost members that `m` (it ends with a null name)
 * asks for. False: this cannot be one JSON object. The router checks the rest. */
static bool members_untrusted(const char *at, size_t len, struct member *m) {
    const char *end = at + len, *value = NULL;
    struct text string = {0}, name = {0};
    int depth = 0, objects = 0;
    for (; at < end; at++) {
        const char *from = at;
        if (*at == '"') {
            while (++at < end && *at != '"') at += *at == '\\' && at + 1 < end;
            if (at >= end || depth == 0) return false;
            string = (struct text){from, (size_t)(at + 1 - from)};
        } else if (*at == '{' || *at == '[') {
            if (depth++ == 0 && (*at == '[' || objects++)) return false;
        } else if (*at == '}' || *at == ']') {
            if (depth == 1 && value) remember(m, name, value, at);
            if (--depth < 0) return false;
        } else if (depth == 0 && !memchr(" \t\r\n", *at, 4)) {
            return false;
        } else if (depth == 1 && *at == ':') {
            name = string;
            value = at + 1;
        } else if (depth == 1 && *at == ',' && value) {
            remember(m, name, value, at);
            value = NULL;
        }
    }
    return depth == 0 && objects == 1;
}

/* -- what the runtime gave ------------------------------------------------------------------------------------- */

static long long now_ms(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

static const char *variable(const char *name) {
    const char *value = getenv(name);
    return value ? value : "";
}

/* False: it did not come to its end in time, or is too long, or cannot be read; errno says which. */
static bool read_config(int milliseconds) {
    long long end = now_ms(CLOCK_MONOTONIC) + milliseconds;
    for (;;) {
        struct pollfd ready = {STDIN_FILENO, POLLIN, 0};
        long long left = end - now_ms(CLOCK_MONOTONIC);
        if (left <= 0 || poll(&ready, 1, (int)left) == 0) return errno = ETIMEDOUT, false;
        ssize_t got = read(STDIN_FILENO, config + config_len, sizeof config - config_len);
        if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
        if (got <= 0) return got == 0;
        config_len += (size_t)got;
        if (config_len > CONFIG_MAX) return errno = EFBIG, false;
    }
}

static int version_index(const struct text *quoted) {
    for (int i = 0; i < VERSION_COUNT; i++)
        if (quoted->len == 7 && quoted->at[0] == '"' && memcmp(quoted->at + 1, VERSIONS[i], 5) == 0) return i;
    return -1;
}

static void take_path(const struct member *m, char *path, size_t size) {
    if (m->seen == 0) return;
    const char *at = m->value.at;
    size_t len = m->value.len;
    if (len < 4 || at[0] != '"' || at[len - 1] != '"' || at[1] != '/' || memchr(at, '\\', len) || len - 2 >= size)
        fail(BAD_CONFIG, "\"%s\" of the network configuration is no absolute path shorter than %zu", m->name, size);
    memcpy(path, at + 1, len - 2);
    path[len - 2] = 0;
}

static void parse_config(void) {
    struct member m[] = {{"cniVersion", {0}, 0}, {"socket", {0}, 0}, {"journal", {0}, 0}, {"name", {0}, 0}, {0}};
    if (!read_config(STDIN_MS)) {
        if (errno == EFBIG) fail(UNDECODABLE, "the network configuration is larger than %d bytes", CONFIG_MAX);
        fail(IO_FAILURE, "cannot read the network configuration from stdin: %s", strerror(errno));
    }
    if (!members_untrusted(config, config_len, m))
        fail(UNDECODABLE, "the network configuration on stdin (%zu bytes) is not one JSON object", config_len);
    for (struct member *one = m; one->name; one++)
        if (one->seen > 1) fail(UNDECODABLE, "\"%s\" stands twice in the network configuration", one->name);
    int found = m[0].seen ? version_index(&m[0].value) : -1;
    if (found < 0)
        fail(INCOMPATIBLE, "cniVersion %.*s of the network configuration is none of 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0",
             m[0].seen ? (int)(m[0].value.len < 64 ? m[0].value.len : 64) : 6, m[0].seen ? m[0].value.at : "(none)");
    version = found;
    take_path(&m[1], socket_path, sizeof socket_path);
    take_path(&m[2], journal_path, sizeof journal_path - 64);
}

static void check_pod(void) {
    const char *id = variable("CNI_CONTAINERID"), *name = variable("CNI_IFNAME");
    bool odd = strspn(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") != strlen(id);
    if (!*id || odd || strchr("_.-", *id) || strlen(id) > CONTAINER_ID_MAX)
        fail(BAD_ENVIRONMENT, "CNI_CONTAINERID \"%.64s\" is no container id: 1 to %d letters, digits, _ . -", id,
             CONTAINER_ID_MAX);
    odd = !*name || strlen(name) > 15 || strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
    for (const char *at = name; *at; at++) odd |= *at <= ' ' || *at > '~' || *at == '/' || *at == ':';
    if (odd) fail(BAD_ENVIRONMENT, "CNI_IFNAME \"%.64s\" is no interface name: 1 to 15 characters, no space / :", name);
}

static void boot_id(char id[40]) {
    const char *given = getenv("WEAVE_ROUTER_DEBUG_BOOT_ID"); /* hosts of the laboratory share one kernel */
    memset(id, 0, 40);
    if (given) memcpy(id, given, strnlen(given, 36));
    int fd = given ? -1 : open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    if (fd >= 0 && read(fd, id, 36) < 0) id[0] = 0; /* left open: the process is short */
    for (char *at = id; *at; at++)
        if (strspn(at, "0123456789abcdefABCDEF-") == 0) *at = 0;
}

/* -- the pod's namespace --------------------------------------------------------------------------------------- */

/* Its descriptor and inode; -1 where nothing stands at the path, or something else does (errno). */
static int open_netns(const char *path, unsigned long long *inode) {
    struct stat own, pod;
    struct statfs kind;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) return -1;
    bool is_netns = fstatfs(fd, &kind) == 0 && kind.f_type == NSFS_KIND && fstat(fd, &pod) == 0;
    bool is_own = is_netns && stat("/proc/self/ns/net", &own) == 0 && own.st_ino == pod.st_ino;
    if (!is_netns || is_own) {
        close(fd);
        return errno = is_own ? EEXIST : EINVAL, -1;
    }
    *inode = pod.st_ino;
    return fd;
}

static void set_sysctl(const char *path, const char *value) {
    char present = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return; /* a kernel without IPv6 */
    bool well = read(fd, &present, 1) == 1 && present == *value;
    close(fd);
    if (well) return;
    fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, value, 1) != 1) fail(IO_FAILURE, "cannot set %s to %s: %s", path, value, strerror(errno));
    close(fd);
}

/* fds: netlink socket inside the pod, the namespace. The process stays in the pod's namespace; unix sockets are found
 * by path, so that does not matter. */
static void enter_pod(int fds[2], unsigned long long *inode) {
    const char *path = variable("CNI_NETNS");
    if (!*path) fail(BAD_ENVIRONMENT, "CNI_NETNS is not set");
    fds[1] = open_netns(path, inode);
    if (fds[1] < 0)
        fail(errno == ENOENT ? UNKNOWN_CONTAINER : BAD_ENVIRONMENT, "cannot use CNI_NETNS %.256s: %s", path,
             errno == EEXIST ? "it is the host's own" : errno == EINVAL ? "no network namespace" : strerror(errno));
    if (setns(fds[1], CLONE_NEWNET) != 0)
        fail(errno == EPERM ? INTERNAL : BAD_ENVIRONMENT, "cannot enter CNI_NETNS %.256s: %s", path, strerror(errno));
    fds[0] = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, ROUTE);
    if (fds[0] < 0) fail(INTERNAL, "cannot open a netlink socket in %.256s: %s", path, strerror(errno));
    for (size_t i = 0; i < sizeof SYSCTLS / sizeof *SYSCTLS; i++) set_sysctl(SYSCTLS[i][0], SYSCTLS[i][1]);
}

/* -- the router ------------------------------------------------------------------------------------------------ */

static bool wait_for(int fd, short events, long long end) {
    long long left = end - now_ms(CLOCK_MONOTONIC);
    return left > 0 && poll(&(struct pollfd){fd, events, 0}, 1, (int)left) == 1;
}

static bool send_request(int fd, const struct buffer *request, const int *fds, int count, long long end) {
    uint32_t head = htonl((uint32_t)request->len);
    struct iovec parts[2] = {{&head, sizeof head}, {request->at, request->len}};
    union { struct cmsghdr head; char room[CMSG_SPACE(2 * sizeof(int))]; } control = {
        {.cmsg_len = CMSG_LEN(2 * sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    if (count > 0) {
        memcpy(CMSG_DATA(&control.head), fds, 2 * sizeof(int));
        message.msg_control = &control;
        message.msg_controllen = sizeof control;
    }
    ssize_t sent = sendmsg(fd, &message, MSG_NOSIGNAL);
    if (sent < (ssize_t)sizeof head) return false;
    for (size_t done = (size_t)sent - sizeof head; done < request->len; done += (size_t)sent) {
        if (!wait_for(fd, POLLOUT, end)) return false;
        sent = send(fd, request->at + done, request->len - done, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno == EAGAIN) sent = 0;
        if (sent < 0) return false;
    }
    return true;
}

static bool receive(int fd, char *at, size_t len, long long end) {
    while (len > 0) {
        if (!wait_for(fd, POLLIN, end)) return false;
        ssize_t got = recv(fd, at, len, MSG_DONTWAIT);
        if (got < 0 && (errno == EAGAIN || errno == EINTR)) continue;
        if (got <= 0) return false;
        at += got;
        len -= (size_t)got;
    }
    return true;
}

/* One request, one answer into `reply`; false: there was none within that time. */
static bool ask(const struct buffer *request, const int *fds, int count, int milliseconds) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval timeout = {.tv_sec = milliseconds / 1000};
    struct ucred peer = {0}; /* without a process id: one of another pid namespace, the other router of a roll-out */
    long long end = now_ms(CLOCK_MONOTONIC) + milliseconds;
    uint32_t head;
    memcpy(address.sun_path, socket_path, sizeof socket_path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return false;
    bool answered = setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout) == 0 &&
                    connect(fd, (struct sockaddr *)&address, sizeof address) == 0 &&
                    getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &(socklen_t){sizeof peer}) == 0 &&
                    (peer.pid != 0 || !own_only) &&
                    send_request(fd, request, fds, count, end) && receive(fd, (char *)&head, sizeof head, end);
    if (answered) {
        reply_len = ntohl(head);
        answered = reply_len <= REPLY_MAX && receive(fd, reply, reply_len, end);
    }
    close(fd);
    return answered;
}

/* The router's code, 0 for success, -1 for an answer that is none. */
static int reply_code(bool result_wanted) {
    struct member m[] = {{"code", {0}, 0}, {"cniVersion", {0}, 0}, {0}};
    if (!members_untrusted(reply, reply_len, m)) return -1;
    if (m[0].seen) return (int)strtol(m[0].value.at, NULL, 10) > 0 ? (int)strtol(m[0].value.at, NULL, 10) : INTERNAL;
    return m[1].seen || (!result_wanted && reply_len == 2) ? 0 : -1;
}

static int relay(bool result_wanted) {
    int code = reply_code(result_wanted);
    if (code < 0) fail(INTERNAL, "no CNI answer from the router at %s; is it of another version?", socket_path);
    reply[reply_len] = '\n';
    if (code == 0 && !result_wanted) return 0;
    return put(STDOUT_FILENO, reply, reply_len + 1) && code == 0 ? 0 : 1;
}

static struct buffer make_request(const char *command, unsigned long long inode) {
    static const char *const names[][2] = {{"container", "CNI_CONTAINERID"}, {"ifname", "CNI_IFNAME"},
                                           {"netns", "CNI_NETNS"}, {"args", "CNI_ARGS"}};
    struct buffer b = {request_room, 0, REQUEST_MAX, false};
    char id[40];
    boot_id(id);
    add(&b, "{\"cni\":{\"command\":\"%s\",\"boot_id\":\"%s\",\"netns_inode\":%llu", command, id, inode);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        add(&b, ",\"%s\":", names[i][0]);
        add_string(&b, variable(names[i][1]), strlen(variable(names[i][1])));
    }
    add(&b, ",\"config\":");
    add_string(&b, config, config_len);
    add(&b, "}}");
    if (b.over) fail(BAD_ENVIRONMENT, "CNI_ARGS, CNI_NETNS and the network configuration are too large together");
    return b;
}

/* -- verbs ----------------------------------------------------------------------------------------------------- */

/* On disk when it returns, under `name`: whatever moment ends the process, the entry is whole or not there. */
static void write_journal(const struct buffer *entry, char *name, size_t size) {
    char temporary[sizeof journal_path + 80];
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    mkdir(journal_path, 0700); /* the router and the installer made it long ago, and synced what holds it */
    snprintf(name, size, "%s/%020lld-%09ld-%d.json", journal_path, (long long)t.tv_sec, t.tv_nsec, getpid());
    snprintf(temporary, sizeof temporary, "%s.tmp", name);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    int folder = open(journal_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || folder < 0 || !put(fd, entry->at, entry->len) || fsync(fd) != 0 || rename(temporary, name) != 0 ||
        fsync(folder) != 0) {
        fail(IO_FAILURE, "no router answers, and the journal %s cannot be written: %s", journal_path, strerror(errno));
    }
}

/* A fault of the request itself is the runtime's to hear: from the journal it would be as wrong. */
static int del(void) {
    char entry[sizeof journal_path + 64];
    unsigned long long inode = 0;
    check_pod();
    if (*variable("CNI_NETNS")) open_netns(variable("CNI_NETNS"), &inode); /* closed by our end, which is near */
    struct buffer request = make_request("DEL", inode);
    if (ask(&request, NULL, 0, DEL_MS)) {
        int code = reply_code(false);
        if (code >= 0 && code <= BAD_CONFIG && code != IO_FAILURE) return relay(false);
    }
    write_journal(&request, entry, sizeof entry);
    if (ask(&request, NULL, 0, AGAIN_MS) && reply_code(false) == 0) unlink(entry);
    return 0;
}

/* ADD, CHECK, GC. */
static int carry_out(const char *command) {
    int fds[2] = {-1, -1};
    unsigned long long inode = 0;
    bool adds = strcmp(command, "ADD") == 0, collects = strcmp(command, "GC") == 0;
    if (!collects) {
        check_pod();
        enter_pod(fds, &inode);
    }
    struct buffer request = make_request(command, inode);
    for (long long end = now_ms(CLOCK_MONOTONIC) + WAIT_MS; !ask(&request, fds, collects ? 0 : 2, ANSWER_MS);) {
        if (collects || now_ms(CLOCK_MONOTONIC) > end)
            fail(TRY_LATER, "the router does not answer at %s; is it running? (`weave-router status`)", socket_path);
        nanosleep(&(struct timespec){.tv_nsec = RETRY_MS * 1000000}, NULL);
    }
    return relay(adds);
}

/* The router writes boot id and CLOCK_BOOTTIME seconds to `alive` beside its socket, every few seconds. */
static int status(void) {
    char path[sizeof socket_path + 8], line[96] = {0}, id[40];
    strcpy(path, socket_path);
    strcpy(strrchr(path, '/') + 1, "alive");
    boot_id(id);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    size_t len = strlen(id);
    if (fd < 0 || read(fd, line, sizeof line - 1) <= 0 || strncmp(line, id, len) != 0 || line[len] != ' ')
        fail(UNAVAILABLE, "no router has run here since boot: %s is missing, or of another boot", path);
    long long age = now_ms(CLOCK_BOOTTIME) / 1000 - strtoll(line + len, NULL, 10);
    if (age > ALIVE_SECONDS) fail(UNAVAILABLE, "the router was last alive %lld s ago; see its log", age);
    return 0;
}

static int show_version(void) {
    struct member m[] = {{"cniVersion", {0}, 0}, {0}};
    bool given = !isatty(STDIN_FILENO) && read_config(STDIN_MS / 10) && members_untrusted(config, config_len, m);
    int found = given && m[0].seen ? version_index(&m[0].value) : -1;
    return printf("{\"cniVersion\":\"%s\",\"supportedVersions\":[\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}\n",
                  VERSIONS[found < 0 ? VERSION_COUNT - 1 : found]) < 0 || fflush(stdout) != 0;
}

/* Of this pod's own router: the one that serves, else one that waits for its turn and answers at standby.sock. */
static int probe(const char *kind, const char *path) {
    char text[64];
    struct buffer request = {text, 0, sizeof text, false};
    add(&request, "{\"probe\":\"%s\"}", kind);
    if (path && *path == '/' && strlen(path) + 16 < sizeof socket_path) strcpy(socket_path, path);
    own_only = true;
    bool answered = ask(&request, NULL, 0, AGAIN_MS);
    if (!answered) strcpy(strrchr(socket_path, '/') + 1, "standby.sock");
    answered = answered || ask(&request, NULL, 0, AGAIN_MS);
    if (answered && reply_len == 2) return 0;
    fprintf(stderr, "weave-router-cni: the router is not %s: %.*s\n", kind, answered ? (int)reply_len : 9,
            answered ? reply : "no answer");
    return 1;
}

int main(int argc, char **argv) {
    const char *command = variable("CNI_COMMAND");
    signal(SIGPIPE, SIG_IGN);
    if (argc > 1) {
        bool known = argc > 2 && strcmp(argv[1], "probe") == 0;
        if (known && (strcmp(argv[2], "live") == 0 || strcmp(argv[2], "ready") == 0)) return probe(argv[2], argv[3]);
        return fputs("usage: weave-router-cni probe live|ready [SOCKET]; else CNI_COMMAND says what to do\n", stderr), 2;
    }
    if (strcmp(command, "VERSION") == 0) return show_version();
    bool adds = strcmp(command, "ADD") == 0, dels = strcmp(command, "DEL") == 0, asks = strcmp(command, "STATUS") == 0;
    bool checks = strcmp(command, "CHECK") == 0, collects = strcmp(command, "GC") == 0;
    if (!(adds || dels || checks || collects || asks))
        fail(BAD_ENVIRONMENT, "CNI_COMMAND \"%.64s\" is none of ADD, DEL, CHECK, GC, STATUS, VERSION", command);
    parse_config();
    if ((checks && version < FIRST_CHECK) || ((collects || asks) && version < FIRST_GC))
        fail(INCOMPATIBLE, "there is no %s in version %s of the specification", command, VERSIONS[version]);
    return dels ? del() : asks ? status() : carry_out(command);
}
