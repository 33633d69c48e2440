/*
 * The server inside the container: HTTP/1.1 in one file, one thread for each connection, nothing but libc.
 *
 * Any path answers JSON that says who answered. Keep-alive and HEAD work; a request body with a Content-Length is read and
 * counted. SIGTERM ends it with exit code 0: as process 1 of its container it gets no signal that it has no handler for.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef VERSION
#define VERSION "1"
#endif

enum { HEAD_MAX = 16 * 1024, PATH_SHOWN = 1024, STACK = 128 * 1024 };

static atomic_ulong requests;
static char host[256];
static const char *greeting;

static void on_term(int sig) {
    (void)sig;
    _exit(0);
}

/* Writes all of it; -1 when the client has gone. */
static int send_all(int fd, const char *data, size_t len) {
    while (len > 0) {
        ssize_t n = send(fd, data, len, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return -1;
        data += n;
        len -= (size_t)n;
    }
    return 0;
}

/* A JSON string's inside, at most `room` bytes and never half an escape. */
static void escape(char *out, size_t room, const char *in, size_t len) {
    size_t used = 0;
    for (size_t i = 0; i < len && used + 7 < room; i++) {
        unsigned char c = (unsigned char)in[i];
        if (c == '"' || c == '\\') {
            out[used++] = '\\';
            out[used++] = (char)c;
        } else if (c < 0x20 || c == 0x7f) {
            used += (size_t)snprintf(out + used, room - used, "\\u%04x", c);
        } else {
            out[used++] = (char)c;
        }
    }
    out[used] = 0;
}

static int refuse(int fd, const char *status) {
    char reply[256];
    int n = snprintf(reply, sizeof reply, "HTTP/1.1 %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", status);
    send_all(fd, reply, (size_t)n);
    return -1;
}

/* The value of a header in a head that ends with an empty line, or NULL. */
static const char *header(const char *head, const char *name) {
    size_t len = strlen(name);
    for (const char *line = strstr(head, "\r\n"); line && line[2] != '\r'; line = strstr(line + 2, "\r\n")) {
        if (strncasecmp(line + 2, name, len) == 0 && line[2 + len] == ':') {
            const char *value = line + 3 + len;
            while (*value == ' ' || *value == '\t') value++;
            return value;
        }
    }
    return NULL;
}

/* Answers one request whose head is `head`; 0: the connection may serve another. */
static int answer(int fd, const char *head, uint64_t body_bytes, int keep_alive) {
    const char *space = strchr(head, ' ');
    const char *path = space ? space + 1 : "";
    size_t path_len = strcspn(path, " \r\n");
    char shown[PATH_SHOWN], hello[256], name[512], body[4096], reply[8192];
    escape(shown, sizeof shown, path, path_len);
    escape(hello, sizeof hello, greeting, strlen(greeting));
    escape(name, sizeof name, host, strlen(host));
    int len = snprintf(body, sizeof body,
                       "{\"message\":\"%s from a container\",\"path\":\"%s\",\"hostname\":\"%s\",\"pid\":%d,"
                       "\"version\":\"%s\",\"requests\":%lu,\"bodyBytes\":%llu}\n",
                       hello, shown, name, (int)getpid(), VERSION, atomic_fetch_add(&requests, 1) + 1,
                       (unsigned long long)body_bytes);
    int n = snprintf(reply, sizeof reply,
                     "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: %s\r\n\r\n%s",
                     len, keep_alive ? "keep-alive" : "close", strncmp(head, "HEAD ", 5) == 0 ? "" : body);
    return send_all(fd, reply, (size_t)n) == 0 && keep_alive ? 0 : -1;
}

static void *connection(void *arg) {
    int fd = (int)(intptr_t)arg;
    char buffer[HEAD_MAX + 1];
    size_t have = 0;
    for (;;) {
        char *end;
        buffer[have] = 0;
        while ((end = memmem(buffer, have, "\r\n\r\n", 4)) == NULL) {
            if (have == HEAD_MAX) {
                refuse(fd, "431 Request Header Fields Too Large");
                goto done;
            }
            ssize_t n = recv(fd, buffer + have, HEAD_MAX - have, 0);
            if (n < 0 && errno == EINTR) continue;
            if (n <= 0) goto done;
            have += (size_t)n;
            buffer[have] = 0;
        }
        size_t head_len = (size_t)(end - buffer) + 4;
        char first = buffer[head_len];
        buffer[head_len] = 0;
        if (memchr(buffer, 0, head_len) || !strchr(buffer, ' ')) {
            refuse(fd, "400 Bad Request");
            goto done;
        }
        if (header(buffer, "Transfer-Encoding")) {
            refuse(fd, "411 Length Required");
            goto done;
        }
        uint64_t body = 0;
        const char *length = header(buffer, "Content-Length");
        if (length) {
            char *rest;
            errno = 0;
            body = strtoull(length, &rest, 10);
            if (rest == length || *length == '-' || errno || strspn(rest, " \t") != strcspn(rest, "\r")) {
                refuse(fd, "400 Bad Request");
                goto done;
            }
        }
        const char *wanted = header(buffer, "Connection");
        char *line_end = strstr(buffer, "\r\n");
        int keep_alive = line_end - buffer >= 8 && strncmp(line_end - 8, "HTTP/1.1", 8) == 0 &&
                         !(wanted && strncasecmp(wanted, "close", 5) == 0);

        /* Read the body and drop it: what is in the buffer already, then the socket's. */
        static _Thread_local char sink[16 * 1024];
        size_t in_buffer = have - head_len;
        uint64_t left = body;
        size_t taken = left < in_buffer ? (size_t)left : in_buffer;
        for (left -= taken; left > 0;) {
            ssize_t n = recv(fd, sink, left < sizeof sink ? (size_t)left : sizeof sink, 0);
            if (n < 0 && errno == EINTR) continue;
            if (n <= 0) goto done;
            left -= (uint64_t)n;
        }
        if (answer(fd, buffer, body, keep_alive) != 0) goto done;
        buffer[head_len] = first;
        have = in_buffer - taken;
        memmove(buffer, buffer + head_len + taken, have);
    }
done:
    close(fd);
    return NULL;
}

int main(void) {
    struct sigaction term = {.sa_handler = on_term};
    sigaction(SIGTERM, &term, NULL);
    sigaction(SIGINT, &term, NULL);
    signal(SIGPIPE, SIG_IGN);

    greeting = getenv("GREETING");
    if (!greeting || !*greeting) greeting = "Hello";
    gethostname(host, sizeof host - 1);
    const char *port = getenv("PORT");
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)(port ? atoi(port) : 8080))};
    int on = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
        bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 1024) != 0) {
        perror("listen");
        return 1;
    }
    printf("listening on port %u, version " VERSION "\n", ntohs(address.sin_port));
    fflush(stdout);

    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, STACK);
    pthread_attr_setdetachstate(&small, PTHREAD_CREATE_DETACHED);
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EMFILE || errno == ENFILE || errno == ENOMEM) usleep(10000);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        pthread_t thread;
        if (pthread_create(&thread, &small, connection, (void *)(intptr_t)fd) != 0) close(fd);
    }
}
