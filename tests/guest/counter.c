/* A program whose whole state is in RAM: a random token chosen when it starts and a number that grows about
 * every ten milliseconds. The same token with a grown number proves that this very process went on; after a
 * cold boot the token is another one.
 *
 * usage: counter serve        runs for ever
 *        counter              prints "TOKEN NUMBER" of the running one */
#include <poll.h>
#include <sys/random.h>
#include <time.h>

#include "control.h"

#define SOCKET "/run/counter.socket"
#define TICK_MS 10

/* Sixteen bytes that no other boot has. They need not be secret, and waiting until the kernel's generator is
 * seeded costs seconds under emulation; so: what it has, and the time. */
static void choose_token(unsigned char token[16]) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (getrandom(token, 16, GRND_INSECURE) != 16) die("getrandom");
    for (int i = 0; i < 8; i++) token[i] ^= (now.tv_sec * 1000000000ull + now.tv_nsec) >> (8 * i);
}

static void serve(void) {
    unsigned char token[16];
    unsigned long number = 0;
    choose_token(token);
    struct pollfd listener = {.fd = control_listen(SOCKET), .events = POLLIN};
    for (;;) {
        if (poll(&listener, 1, TICK_MS) == 0) {
            number++;
            continue;
        }
        int peer = accept(listener.fd, NULL, NULL);
        if (peer < 0) continue;
        for (size_t i = 0; i < sizeof token; i++) dprintf(peer, "%02x", token[i]);
        dprintf(peer, " %lu\n", number);
        close(peer);
    }
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "serve") == 0) serve();
    return control_ask(SOCKET, "");
}
