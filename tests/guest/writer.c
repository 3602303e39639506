/* The load: one writer per filesystem, writing numbered blocks into a ring, each with O_DSYNC.
 *
 * A block holds its number and a checksum, so a disk that lost, mixed or tore a write shows it. After each
 * completed write the writer sends "FS NUMBER\n" over a virtio-serial port: the host stamps it with its own
 * clock, because a guest's clock stands still while the guest is paused. Such a port can be opened only once,
 * so one process holds it for all filesystems. Nobody has to listen: a line the port does not take is dropped.
 *
 * usage: writer serve PORT    runs for ever
 *        writer start FS      begins after the last number that is on the disk
 *        writer stop FS
 *        writer check FS      prints "FS last NUMBER valid BLOCKS bad BLOCKS", read from the disk, not the cache */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>

#include "control.h"

#define SOCKET "/run/writer.socket"
#define BLOCK 4096
#define BLOCKS 256
#define MAX_WRITERS 32
#define PAUSE_US 500

static const char MAGIC[8] = "vmsnapRB";

struct block {
    char magic[8];
    uint64_t number;
    uint64_t checksum;
    uint64_t body[(BLOCK - 24) / 8];
};
_Static_assert(sizeof(struct block) == BLOCK, "a block is one page");

struct writer {
    char fs[16];
    int running;
    pthread_mutex_t lock; /* held around each write: a check sees whole writes only */
    pthread_cond_t changed;
};

struct ring {
    uint64_t last;
    unsigned valid, bad;
};

static struct writer writers[MAX_WRITERS];
static unsigned writer_count;
static int port = -1;

/* FNV-1a over the block's words, the checksum's own place left out. */
static uint64_t checksum(const struct block *block) {
    uint64_t sum = 0xcbf29ce484222325;
    sum = (sum ^ block->number) * 0x100000001b3;
    for (size_t i = 0; i < sizeof block->body / 8; i++) sum = (sum ^ block->body[i]) * 0x100000001b3;
    return sum;
}

static void fill(struct block *block, uint64_t number) {
    memcpy(block->magic, MAGIC, sizeof MAGIC);
    block->number = number;
    for (size_t i = 0; i < sizeof block->body / 8; i++) block->body[i] = number * 0x9e3779b97f4a7c15 + i;
    block->checksum = checksum(block);
}

static int open_ring(const char *fs, int flags) {
    char path[64];
    snprintf(path, sizeof path, "/mnt/%s/ring", fs);
    return open(path, flags | O_CLOEXEC, 0644);
}

/* What the ring on the disk holds. A block is bad if it is not the one that belongs there: the ring must hold
 * the last BLOCKS numbers, each in its place. */
static int check(const char *fs, struct ring *ring) {
    static struct block blocks[BLOCKS] __attribute__((aligned(BLOCK)));
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    memset(ring, 0, sizeof *ring);
    int file = open_ring(fs, O_RDONLY | O_DIRECT);
    if (file < 0) return errno == ENOENT ? 0 : -1;
    pthread_mutex_lock(&lock);
    memset(blocks, 0, sizeof blocks);
    ssize_t got = pread(file, blocks, sizeof blocks, 0);
    close(file);
    for (unsigned i = 0; i < BLOCKS; i++) {
        int whole = memcmp(blocks[i].magic, MAGIC, sizeof MAGIC) == 0 && blocks[i].checksum == checksum(&blocks[i]);
        if (whole && blocks[i].number > ring->last) ring->last = blocks[i].number;
    }
    uint64_t first = ring->last > BLOCKS ? ring->last - BLOCKS + 1 : 1;
    for (uint64_t number = first; number <= ring->last; number++) {
        struct block *block = &blocks[number % BLOCKS];
        int right = block->number == number && block->checksum == checksum(block);
        right ? ring->valid++ : ring->bad++;
    }
    pthread_mutex_unlock(&lock);
    return got < 0 ? -1 : 0;
}

static void report(const char *fs, uint64_t number) {
    char line[64];
    int length = snprintf(line, sizeof line, "%s %lu\n", fs, (unsigned long)number);
    ssize_t sent = write(port, line, length);
    (void)sent;
}

static void *write_on(void *argument) {
    struct writer *self = argument;
    static __thread struct block block __attribute__((aligned(BLOCK)));
    struct ring ring;
    if (check(self->fs, &ring) != 0) die(self->fs);
    int file = open_ring(self->fs, O_WRONLY | O_CREAT | O_DSYNC);
    if (file < 0) die(self->fs);
    for (uint64_t number = ring.last + 1;; number++) {
        pthread_mutex_lock(&self->lock);
        while (!self->running) pthread_cond_wait(&self->changed, &self->lock);
        fill(&block, number);
        if (pwrite(file, &block, BLOCK, number % BLOCKS * BLOCK) != BLOCK) die(self->fs);
        pthread_mutex_unlock(&self->lock);
        report(self->fs, number);
        usleep(PAUSE_US);
    }
    return NULL;
}

static struct writer *find(const char *fs) {
    for (unsigned i = 0; i < writer_count; i++)
        if (strcmp(writers[i].fs, fs) == 0) return &writers[i];
    return NULL;
}

static struct writer *add(const char *fs) {
    pthread_t thread;
    if (writer_count == MAX_WRITERS) return NULL;
    struct writer *new = &writers[writer_count++];
    snprintf(new->fs, sizeof new->fs, "%s", fs);
    pthread_mutex_init(&new->lock, NULL);
    pthread_cond_init(&new->changed, NULL);
    if (pthread_create(&thread, NULL, write_on, new) != 0) die("pthread_create");
    return new;
}

static void set_running(struct writer *writer, int running) {
    pthread_mutex_lock(&writer->lock);
    writer->running = running;
    pthread_cond_signal(&writer->changed);
    pthread_mutex_unlock(&writer->lock);
}

static void answer_check(int peer, const char *fs) {
    struct writer *writer = find(fs);
    struct ring ring;
    if (writer) pthread_mutex_lock(&writer->lock);
    int failed = check(fs, &ring);
    if (writer) pthread_mutex_unlock(&writer->lock);
    if (failed)
        dprintf(peer, "error: %s: %m\n", fs);
    else
        dprintf(peer, "%s last %lu valid %u bad %u\n", fs, (unsigned long)ring.last, ring.valid, ring.bad);
}

static void answer(int peer, const char *verb, const char *fs) {
    struct writer *writer = find(fs);
    if (strcmp(verb, "check") == 0) {
        answer_check(peer, fs);
    } else if (strcmp(verb, "start") == 0) {
        if (!writer) writer = add(fs);
        if (writer) set_running(writer, 1);
        dprintf(peer, writer ? "%s started\n" : "error: %s: too many writers\n", fs);
    } else if (strcmp(verb, "stop") == 0) {
        if (writer) set_running(writer, 0);
        dprintf(peer, "%s stopped\n", fs);
    } else {
        dprintf(peer, "error: no such request: %s\n", verb);
    }
}

static void serve(const char *port_path) {
    int listener = control_listen(SOCKET);
    port = open(port_path, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
    if (port < 0) perror(port_path);
    for (;;) {
        char request[LINE] = "", verb[16] = "", fs[16] = "";
        int peer = accept(listener, NULL, NULL);
        if (peer < 0) continue;
        if (read(peer, request, sizeof request - 1) > 0 && sscanf(request, "%15s %15s", verb, fs) == 2)
            answer(peer, verb, fs);
        close(peer);
    }
}

int main(int argc, char **argv) {
    char request[LINE];
    if (argc != 3) {
        fprintf(stderr, "usage: writer serve PORT | start FS | stop FS | check FS\n");
        return 2;
    }
    if (strcmp(argv[1], "serve") == 0) serve(argv[2]);
    snprintf(request, sizeof request, "%s %s\n", argv[1], argv[2]);
    return control_ask(SOCKET, request);
}
