// The upstream of the benchmarks: an OpenAI-shaped server on loopback that costs next to nothing, so that what is
// measured is the gateway. One thread, epoll, keep-alive. `mock PORT` prints "ready" when it listens.
//
// It answers any POST with a chat completion, as 24 server-sent events when the body says "stream": true, and any GET
// with an empty list. Two marks in a prompt change its pace, so that one server plays every variant behind any gateway:
//   [[delay=50]]   milliseconds before the first byte
//   [[gap=2000]]   microseconds between the events of a stream (0: one write after another, without a pause)

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { CONNECTIONS = 4096, EVENTS = 24, SEARCHED_BYTES = 4096, BODY_LIMIT_BYTES = 8 << 20 };

struct connection {
    char *data;
    size_t length, capacity;
    int streaming, wants_usage, next_part;
    int64_t gap_ns, due_ns;  // due_ns is 0 when nothing is owed
};

struct text {
    char bytes[1024];
    size_t length;
};

static struct connection connections[CONNECTIONS];
static struct text stream_head, parts[EVENTS], usage_part, done_part;
static char completion[1024], models[256];
static size_t completion_length, models_length;
static int poller, timer, owed;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void drop(int fd) {
    if (connections[fd].due_ns) owed--;
    connections[fd].due_ns = 0;
    connections[fd].length = 0;
    close(fd);
}

// Replies are far smaller than a socket buffer and a connection owes one at a time: a short write means the peer is gone.
static int put(int fd, const char *bytes, size_t length) {
    return send(fd, bytes, length, MSG_NOSIGNAL) == (ssize_t)length;
}

static void as_chunk(struct text *out, const char *event) {
    out->length = snprintf(out->bytes, sizeof out->bytes, "%zx\r\ndata: %s\n\n\r\n", strlen(event) + 8, event);
}

static void prepare(void) {
    const char *base = "{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"bench\",\"choices\":";
    char event[900];
    const char *body =
        "{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion\",\"created\":1700000000,\"model\":\"bench\","
        "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"The quick brown fox jumps over the lazy dog, "
        "and then it sits down to think about what it has done.\",\"refusal\":null},\"logprobs\":null,\"finish_reason\":\"stop\"}],"
        "\"usage\":{\"prompt_tokens\":230,\"completion_tokens\":24,\"total_tokens\":254,"
        "\"prompt_tokens_details\":{\"cached_tokens\":0},\"completion_tokens_details\":{\"reasoning_tokens\":0}}}";
    completion_length = snprintf(completion, sizeof completion,
                                 "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s", strlen(body), body);
    const char *list = "{\"object\":\"list\",\"data\":[{\"id\":\"bench\",\"object\":\"model\"}]}";
    models_length = snprintf(models, sizeof models,
                             "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s", strlen(list), list);
    stream_head.length = snprintf(stream_head.bytes, sizeof stream_head.bytes,
                                  "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (int i = 0; i < EVENTS; i++) {
        const char *delta = i == 0 ? "{\"role\":\"assistant\",\"content\":\"\"}" : i == EVENTS - 1 ? "{}" : "{\"content\":\" fox\"}";
        snprintf(event, sizeof event, "%s[{\"index\":0,\"delta\":%s,\"finish_reason\":%s}]}", base, delta, i == EVENTS - 1 ? "\"stop\"" : "null");
        as_chunk(&parts[i], event);
    }
    snprintf(event, sizeof event, "%s[],\"usage\":{\"prompt_tokens\":230,\"completion_tokens\":24,\"total_tokens\":254}}", base);
    as_chunk(&usage_part, event);
    done_part.length = snprintf(done_part.bytes, sizeof done_part.bytes, "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
}

// Sends what is due now; says whether the connection lives.
static int deliver(int fd, struct connection *c) {
    c->due_ns = 0;
    if (!c->streaming) return put(fd, completion, completion_length);
    if (c->next_part == 0 && !put(fd, stream_head.bytes, stream_head.length)) return 0;
    // A write for every event, as providers do: a gateway that gathers them may, but is not handed them gathered.
    while (c->next_part < EVENTS) {
        if (!put(fd, parts[c->next_part].bytes, parts[c->next_part].length)) return 0;
        if (++c->next_part < EVENTS && c->gap_ns) {
            c->due_ns = now_ns() + c->gap_ns;
            owed++;
            return 1;
        }
    }
    if (c->wants_usage && !put(fd, usage_part.bytes, usage_part.length)) return 0;
    return put(fd, done_part.bytes, done_part.length);
}

static long marked(const char *body, size_t length, const char *mark) {
    const char *at = memmem(body, length, mark, strlen(mark));
    return at ? strtol(at + strlen(mark), NULL, 10) : 0;
}

// Answers every whole request in the buffer; says whether the connection lives.
static int answer(int fd, struct connection *c) {
    while (!c->due_ns) {
        char *end = c->length > 4 ? memmem(c->data, c->length, "\r\n\r\n", 4) : NULL;
        if (!end) return c->length < 65536;
        *end = 0;
        char *field = strcasestr(c->data, "\r\ncontent-length:");
        size_t body_length = field ? strtoul(field + 17, NULL, 10) : 0;
        *end = '\r';
        size_t head_length = end + 4 - c->data, total = head_length + body_length;
        if (body_length > BODY_LIMIT_BYTES) return 0;
        if (c->length < total) return 1;

        if (c->data[0] == 'G') {
            if (!put(fd, models, models_length)) return 0;
        } else {
            const char *body = c->data + head_length;
            // Marks are only ever put into small bodies: searching a large one would make this server the bottleneck.
            size_t searched = body_length <= SEARCHED_BYTES ? body_length : 0;
            c->streaming = memmem(body, searched, "\"stream\":true", 13) || memmem(body, searched, "\"stream\": true", 14);
            c->wants_usage = c->streaming && memmem(body, searched, "include_usage", 13) != NULL;
            c->gap_ns = marked(body, searched, "[[gap=") * 1000LL;
            c->next_part = 0;
            long delay_ms = marked(body, searched, "[[delay=");
            if (delay_ms) {
                c->due_ns = now_ns() + delay_ms * 1000000LL;
                owed++;
            } else if (!deliver(fd, c)) {
                return 0;
            }
        }
        memmove(c->data, c->data + total, c->length - total);
        c->length -= total;
        if (!c->length) return 1;
    }
    return 1;
}

static void on_readable(int fd) {
    struct connection *c = &connections[fd];
    if (c->capacity - c->length < 65536) {
        c->capacity = c->capacity ? c->capacity * 2 : 262144;
        c->data = realloc(c->data, c->capacity);
        if (!c->data) exit(1);
    }
    ssize_t got = recv(fd, c->data + c->length, c->capacity - c->length, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) {
        drop(fd);
        return;
    }
    c->length += got;
    if (!answer(fd, c)) drop(fd);
}

static void serve_due(void) {
    int64_t now = now_ns(), earliest = 0;
    for (int fd = 0, left = owed; fd < CONNECTIONS && left > 0; fd++) {
        struct connection *c = &connections[fd];
        if (!c->due_ns) continue;
        left--;
        if (c->due_ns <= now) {
            owed--;
            if (!deliver(fd, c) || !answer(fd, c)) {
                drop(fd);
                continue;
            }
        }
        if (c->due_ns && (!earliest || c->due_ns < earliest)) earliest = c->due_ns;
    }
    struct itimerspec when = {.it_value = {earliest / 1000000000LL, earliest % 1000000000LL}};
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL);
}

static void watch(int fd) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: mock PORT\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    prepare();
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1024)) {
        perror("mock: cannot listen");
        return 1;
    }
    poller = epoll_create1(0);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    watch(listener);
    watch(timer);
    puts("ready");
    fflush(stdout);

    struct epoll_event events[256];
    for (;;) {
        int count = epoll_wait(poller, events, 256, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                int client;
                while ((client = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    if (client >= CONNECTIONS) {
                        close(client);
                        continue;
                    }
                    setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    watch(client);
                }
            } else if (fd == timer) {
                uint64_t fired;
                if (read(timer, &fired, sizeof fired) < 0 && errno != EAGAIN) perror("mock: timer");
            } else {
                on_readable(fd);
            }
        }
        if (owed) serve_due();
    }
}
