/* Runs the executable's main over many inputs under the sanitizers, each in a fork, in an empty root.
 *
 * stdin: u8 verb, u8 reply follows, u32 length, bytes (native order). The bytes are the configuration, or with `reply`
 * what a router answers to a GC. Exit status 0: every run ended with 0 or 1. Called by test_fuzz.py. */
#define main shim_main
#include "../../cni_shim/weave_router_cni.c"
#undef main

#include <sys/mman.h>
#include <sys/wait.h>

static const char *const VERBS[] = {"ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", "NONE"};

static bool get(void *at, size_t len) {
    for (ssize_t got; len > 0; at = (char *)at + got, len -= (size_t)got)
        if ((got = read(STDIN_FILENO, at, len)) <= 0) return false;
    return true;
}

static int run(unsigned char verb, const char *data, size_t len) {
    int file = memfd_create("config", 0), nowhere = memfd_create("output", 0);
    if (file < 0 || nowhere < 0 || !put(file, data, len)) _exit(3);
    lseek(file, 0, SEEK_SET);
    dup2(file, STDIN_FILENO);
    dup2(nowhere, STDOUT_FILENO);
    setenv("CNI_COMMAND", VERBS[verb % 7], 1);
    char *argv[] = {(char *)"weave-router-cni", NULL};
    return shim_main(1, argv);
}

static int judge(const char *data, size_t len) {
    int nowhere = memfd_create("output", 0);
    dup2(nowhere, STDOUT_FILENO);
    memcpy(reply, data, len);
    reply_len = len;
    return relay(len % 2 == 0);
}

int main(int argc, char **argv) {
    static char data[CONFIG_MAX];
    unsigned char verb, answers;
    uint32_t len;
    if (argc != 2 || chroot(argv[1]) != 0 || chdir("/") != 0) return 3;
    for (long count = 0; get(&verb, 1) && get(&answers, 1) && get(&len, sizeof len); count++) {
        if (len > sizeof data || !get(data, len)) return 3;
        int status;
        pid_t child = fork();
        if (child == 0) exit(answers ? judge(data, len) : run(verb, data, len));
        if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) > 1) {
            fprintf(stderr, "input %ld (verb %d, reply %d): status %x\n", count, verb, answers, (unsigned)status);
            return 1;
        }
    }
    return 0;
}
