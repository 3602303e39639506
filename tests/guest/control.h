/* One line in, one line out, over a Unix socket: how a command started through the guest agent talks to a
 * program that has been running since the boot. */
#ifndef CONTROL_H
#define CONTROL_H

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define LINE 256

__attribute__((noreturn)) static void die(const char *what) {
    perror(what);
    exit(1);
}

static struct sockaddr_un control_address(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    return address;
}

/* A socket listening at `path`. A client that has gone must not end the program that answers it. */
static int control_listen(const char *path) {
    struct sockaddr_un address = control_address(path);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0) die("socket");
    signal(SIGPIPE, SIG_IGN);
    unlink(path);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0) die("bind");
    if (listen(listener, 8) != 0) die("listen");
    return listener;
}

/* Sends `request`, prints the answer. Gives the exit status: 1 if the answer starts with "error". */
static int control_ask(const char *path, const char *request) {
    struct sockaddr_un address = control_address(path);
    char answer[LINE] = "";
    int peer = socket(AF_UNIX, SOCK_STREAM, 0);
    if (peer < 0) die("socket");
    if (connect(peer, (struct sockaddr *)&address, sizeof address) != 0) die("connect");
    if (*request && write(peer, request, strlen(request)) < 0) die("write");
    size_t have = 0;
    for (ssize_t got; (got = read(peer, answer + have, sizeof answer - 1 - have)) > 0;) have += got;
    fputs(answer, stdout);
    return have == 0 || strncmp(answer, "error", 5) == 0;
}

#endif
