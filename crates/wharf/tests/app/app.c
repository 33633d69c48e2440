/*
 * The app inside the tests' containers: HTTP/1.1 and WebSocket on any number of ports, nothing but libc.
 *
 *   app [flags ignored] [ports...]    without ports: those of $PORTS, or 8080
 *
 *   /who          JSON: pid, start time, port, host name, arguments      /env      one variable a line
 *   /exit/<code>  ends the app                                           /echo     the request's body
 *   /get/<url>    what comes of a GET of it: the body, or 502 and all     /file/<path>
 *   /ws           WebSocket: every message comes back with the port      /ticks    a number every 20 ms, for ever
 *
 * Every connection serves one request in a thread of its own. SIGTERM ends it with 0, SIGUSR1 with 42; with $STUBBORN set SIGTERM does
 * nothing. With $LATE_MS it listens only after so many milliseconds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;
static char args[1024];
static char host[128];
static long long started_us;

struct conn {
    int fd, port;
};

static void on_signal(int sig) {
    if (sig == SIGTERM && getenv("STUBBORN")) return;
    _exit(sig == SIGTERM ? 0 : 42);
}

static int send_all(int fd, const void *data, size_t len) {
    const char *at = data;
    while (len > 0) {
        ssize_t n = send(fd, at, len, MSG_NOSIGNAL);
        if (n <= 0) return -1;
        at += n;
        len -= (size_t)n;
    }
    return 0;
}

static int recv_all(int fd, void *data, size_t len) {
    char *at = data;
    while (len > 0) {
        ssize_t n = recv(fd, at, len, 0);
        if (n <= 0) return -1;
        at += n;
        len -= (size_t)n;
    }
    return 0;
}

static void reply(int fd, const char *status, const char *type, const char *body, size_t len) {
    char head[256];
    int n = snprintf(head, sizeof head, "HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n", status,
                     type, len);
    send_all(fd, head, (size_t)n);
    send_all(fd, body, len);
}

static void text(int fd, const char *body) { reply(fd, "200 OK", "text/plain", body, strlen(body)); }

/* The value of a header, copied; 0 when it is not there. */
static int header(const char *head, const char *name, char *out, size_t room) {
    size_t len = strlen(name);
    for (const char *line = strstr(head, "\r\n"); line && line[2] != '\r'; line = strstr(line + 2, "\r\n")) {
        if (strncasecmp(line + 2, name, len) == 0 && line[2 + len] == ':') {
            const char *value = line + 3 + len;
            value += strspn(value, " ");
            snprintf(out, room, "%.*s", (int)strcspn(value, "\r"), value);
            return 1;
        }
    }
    return 0;
}

static uint32_t rol(uint32_t x, int n) { return x << n | x >> (32 - n); }

/* SHA-1 (RFC 3174) of at most 119 bytes. */
static void sha1(const char *in, size_t len, uint8_t out[20]) {
    uint8_t data[128] = {0};
    size_t blocks = len < 56 ? 1 : 2;
    memcpy(data, in, len);
    data[len] = 0x80;
    for (int i = 0; i < 8; i++) data[blocks * 64 - 1 - i] = (uint8_t)((uint64_t)len * 8 >> (8 * i));
    uint32_t h[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0};
    for (size_t b = 0; b < blocks; b++) {
        uint32_t w[80];
        for (int i = 0; i < 16; i++) {
            const uint8_t *p = data + b * 64 + i * 4;
            w[i] = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
        }
        for (int i = 16; i < 80; i++) w[i] = rol(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
        uint32_t a = h[0], c1 = h[1], c = h[2], d = h[3], e = h[4];
        for (int i = 0; i < 80; i++) {
            uint32_t f, k;
            if (i < 20) f = (c1 & c) | (~c1 & d), k = 0x5a827999;
            else if (i < 40) f = c1 ^ c ^ d, k = 0x6ed9eba1;
            else if (i < 60) f = (c1 & c) | (c1 & d) | (c & d), k = 0x8f1bbcdc;
            else f = c1 ^ c ^ d, k = 0xca62c1d6;
            uint32_t t = rol(a, 5) + f + e + k + w[i];
            e = d, d = c, c = rol(c1, 30), c1 = a, a = t;
        }
        h[0] += a, h[1] += c1, h[2] += c, h[3] += d, h[4] += e;
    }
    for (int i = 0; i < 20; i++) out[i] = (uint8_t)(h[i / 4] >> (24 - 8 * (i % 4)));
}

static void base64(const uint8_t *in, size_t len, char *out) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < len; i += 3) {
        uint32_t v = (uint32_t)in[i] << 16 | (i + 1 < len ? (uint32_t)in[i + 1] << 8 : 0) | (i + 2 < len ? in[i + 2] : 0);
        *out++ = digits[v >> 18];
        *out++ = digits[v >> 12 & 63];
        *out++ = i + 1 < len ? digits[v >> 6 & 63] : '=';
        *out++ = i + 2 < len ? digits[v & 63] : '=';
    }
    *out = 0;
}

/* RFC 6455: single frames of at most 125 bytes each way. */
static void websocket(int fd, int port, const char *key) {
    char joined[120], accept[32], head[256];
    uint8_t hash[20];
    int n = snprintf(joined, sizeof joined, "%s258EAFA5-E914-47DA-95CA-C5AB0DC85B11", key);
    sha1(joined, (size_t)n, hash);
    base64(hash, sizeof hash, accept);
    n = snprintf(head, sizeof head,
                 "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n", accept);
    if (send_all(fd, head, (size_t)n)) return;
    for (;;) {
        uint8_t frame[2], mask[4], data[126], out[2 + 125];
        if (recv_all(fd, frame, 2) || (frame[1] & 127) > 110 || !(frame[1] & 128)) return;
        size_t len = frame[1] & 127;
        if (recv_all(fd, mask, 4) || recv_all(fd, data, len)) return;
        for (size_t i = 0; i < len; i++) data[i] ^= mask[i % 4];
        int op = frame[0] & 15;
        int size = 0;
        if (op == 8) size = (int)len, memcpy(out + 2, data, len);
        else if (op == 1) size = snprintf((char *)out + 2, 125, "%d:%.*s", port, (int)len, data);
        else continue;
        out[0] = (uint8_t)(0x80 | op);
        out[1] = (uint8_t)size;
        if (send_all(fd, out, 2 + (size_t)size) || op == 8) return;
    }
}

/* The first A record of a name, by the server in /etc/resolv.conf (RFC 1035); 0 when there is none. */
static uint32_t resolve(const char *name) {
    uint8_t packet[512] = {0x12, 0x34, 1, 0, 0, 1};
    struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons(53)};
    char line[256], address[64] = "";
    FILE *file = fopen("/etc/resolv.conf", "r");
    while (file && !*address && fgets(line, sizeof line, file)) sscanf(line, "nameserver %63s", address);
    if (file) fclose(file);
    if (inet_pton(AF_INET, address, &server.sin_addr) != 1) return 0;
    size_t at = 12;
    for (const char *label = name; *label;) {
        size_t len = strcspn(label, ".");
        if (at + len > 250) return 0;
        packet[at++] = (uint8_t)len;
        memcpy(packet + at, label, len);
        at += len;
        label += len + (label[len] == '.');
    }
    packet[at + 2] = packet[at + 4] = 1;
    at += 5;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct timeval bound = {.tv_sec = 5};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &bound, sizeof bound);
    uint32_t found = 0;
    if (sendto(fd, packet, at, 0, (struct sockaddr *)&server, sizeof server) == (ssize_t)at) {
        ssize_t len = recv(fd, packet, sizeof packet, 0);
        /* The question again, then records whose name is a pointer. */
        for (size_t r = at; !found && len > 0 && r + 12 <= (size_t)len;) {
            size_t data = (size_t)packet[r + 10] << 8 | packet[r + 11];
            if (packet[r + 3] == 1 && data == 4 && r + 16 <= (size_t)len) memcpy(&found, packet + r + 12, 4);
            r += 12 + data;
        }
    }
    close(fd);
    return found;
}

/* Whether this is an answer with all of its body, or all that there is room for. */
static int is_whole(char *answer, size_t have) {
    char value[32];
    answer[have] = 0;
    char *end = strstr(answer, "\r\n\r\n");
    if (have >= 65535) return 1;
    return end && header(answer, "Content-Length", value, sizeof value) && have >= (size_t)(end + 4 - answer) + (size_t)atol(value);
}

/* GET of http(s)://host/path; TLS is busybox's, which checks no certificate. The status comes back as 200 or 502 and in the body. */
static void get(int fd, const char *url) {
    char name[256], request[1024], body[65536];
    int tls = !strncmp(url, "https://", 8);
    const char *start = strstr(url, "://");
    if (!start) return reply(fd, "400 Bad Request", "text/plain", "no url\n", 7);
    start += 3;
    snprintf(name, sizeof name, "%.*s", (int)strcspn(start, "/"), start);
    const char *path = start + strlen(name);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(tls ? 443 : 80), .sin_addr.s_addr = resolve(name)};
    if (!to.sin_addr.s_addr) return reply(fd, "502 Bad Gateway", "text/plain", "no address\n", 11);
    int out = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), pair[2] = {-1, -1};
    struct timeval bound = {.tv_sec = 10};
    setsockopt(out, SOL_SOCKET, SO_RCVTIMEO, &bound, sizeof bound);
    pid_t pid = 0;
    int stream = out;
    size_t have = 0;
    if (connect(out, (struct sockaddr *)&to, sizeof to) == 0 && (!tls || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0)) {
        if (tls && (pid = fork()) == 0) {
            dup2(pair[1], 0);
            dup2(pair[1], 1);
            dup2(out, 3);
            execl("/bin/busybox", "ssl_client", "-s", "3", "-n", name, (char *)NULL);
            _exit(127);
        }
        if (tls) close(pair[1]), stream = pair[0];
        int len = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", *path ? path : "/", name);
        if (!send_all(stream, request, (size_t)len))
            for (ssize_t n; !is_whole(body, have) && (n = recv(stream, body + have, sizeof body - 1 - have, 0)) > 0;) have += (size_t)n;
    }
    body[have] = 0;
    char *end = strstr(body, "\r\n\r\n");
    if (have > 12 && !strncmp(body + 9, "200", 3) && end) text(fd, end + 4);
    else reply(fd, "502 Bad Gateway", "text/plain", body, have);
    close(out);
    if (tls && pair[0] >= 0) close(pair[0]);
    if (pid > 0) kill(pid, SIGKILL), waitpid(pid, NULL, 0);
}

/* The body of a request, by its length or in chunks; -1 when it does not come whole or is too long. */
static ssize_t request_body(int fd, const char *headers, const char *rest, size_t have, char *body, size_t room) {
    char value[128];
    if (header(headers, "Content-Length", value, sizeof value)) {
        size_t len = (size_t)atoi(value);
        if (len > room || have > len) return -1;
        memcpy(body, rest, have);
        return recv_all(fd, body + have, len - have) ? -1 : (ssize_t)len;
    }
    size_t len = 0, size = 0, line = 0;
    char digits[20];
    for (int in_chunk = 0;;) {
        char c;
        if (have) c = *rest++, have--;
        else if (recv(fd, &c, 1, 0) != 1) return -1;
        if (in_chunk && size > 0) {
            if (len == room) return -1;
            body[len++] = c;
            size--;
        } else if (c == '\n') {
            digits[line] = 0;
            if (in_chunk) in_chunk = 0; /* the end of a chunk's line */
            else if ((size = strtoul(digits, NULL, 16)) == 0) return (ssize_t)len;
            else in_chunk = 1;
            line = 0;
        } else if (line < sizeof digits - 1) {
            digits[line++] = c;
        }
    }
}

static void serve(int fd, int port, char *head, char *rest, size_t have) {
    char *path = strchr(head, ' ');
    char value[128], body[8192];
    if (!path) return;
    path++;
    path[strcspn(path, " \r")] = 0;
    char *headers = path + strlen(path) + 1;
    if (!strcmp(path, "/ws") && header(headers, "Sec-WebSocket-Key", value, 64)) return websocket(fd, port, value);
    if (!strncmp(path, "/exit/", 6)) _exit(atoi(path + 6));
    if (!strncmp(path, "/get/", 5)) return get(fd, path + 5);
    if (!strcmp(path, "/env")) {
        size_t len = 0;
        for (char **e = environ; *e; e++) len += (size_t)snprintf(body + len, sizeof body - len, "%s\n", *e);
        return text(fd, body);
    }
    if (!strncmp(path, "/file/", 6)) {
        FILE *file = fopen(path + 5, "r");
        if (!file) return reply(fd, "404 Not Found", "text/plain", "", 0);
        size_t len = fread(body, 1, sizeof body, file);
        fclose(file);
        return reply(fd, "200 OK", "text/plain", body, len);
    }
    if (!strcmp(path, "/echo")) {
        ssize_t len = request_body(fd, headers, rest, have, body, sizeof body);
        if (len < 0) return;
        return reply(fd, "200 OK", "text/plain", body, (size_t)len);
    }
    if (!strcmp(path, "/ticks")) {
        const char *start = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n";
        if (send_all(fd, start, strlen(start))) return;
        for (int n = 1;; n++) {
            int len = snprintf(body, sizeof body, "%d\n", n);
            if (send_all(fd, body, (size_t)len)) return;
            usleep(20000);
        }
    }
    int len = snprintf(body, sizeof body, "{\"path\":\"%s\",\"port\":%d,\"pid\":%d,\"started\":%lld,\"host\":\"%s\",\"args\":\"%s\"}\n", path, port,
                       (int)getpid(), started_us, host, args);
    reply(fd, "200 OK", "application/json", body, (size_t)len);
}

static void *connection(void *arg) {
    struct conn conn = *(struct conn *)arg;
    free(arg);
    char head[16385];
    size_t have = 0;
    char *end = NULL;
    while (!end && have < sizeof head - 1) {
        ssize_t n = recv(conn.fd, head + have, sizeof head - 1 - have, 0);
        if (n <= 0) break;
        have += (size_t)n;
        head[have] = 0;
        end = strstr(head, "\r\n\r\n");
    }
    if (end) {
        char *rest = end + 4;
        serve(conn.fd, conn.port, head, rest, have - (size_t)(rest - head));
    }
    shutdown(conn.fd, SHUT_WR);
    char drop[512];
    while (recv(conn.fd, drop, sizeof drop, 0) > 0) {
    }
    close(conn.fd);
    return NULL;
}

static void *port_thread(void *arg) {
    int port = (int)(intptr_t)arg, on = 1;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&addr, sizeof addr) || listen(listener, 128)) {
        perror("listen");
        _exit(3);
    }
    printf("listening on %d\n", port);
    fflush(stdout);
    for (;;) {
        struct conn *conn = malloc(sizeof *conn);
        conn->port = port;
        conn->fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        pthread_t thread;
        if (conn->fd < 0 || pthread_create(&thread, NULL, connection, conn)) {
            free(conn);
            continue;
        }
        pthread_detach(thread);
    }
}

int main(int argc, char **argv) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    started_us = now.tv_sec * 1000000LL + now.tv_nsec / 1000;
    gethostname(host, sizeof host - 1);
    signal(SIGTERM, on_signal);
    signal(SIGUSR1, on_signal);
    if (getenv("LATE_MS")) usleep((useconds_t)atoi(getenv("LATE_MS")) * 1000);
    int ports = 0;
    char list[256];
    snprintf(list, sizeof list, "%s", getenv("PORTS") ? getenv("PORTS") : "8080");
    for (int i = 1; i < argc; i++) {
        size_t len = strlen(args);
        snprintf(args + len, sizeof args - len, "%s%s", len ? " " : "", argv[i]);
    }
    pthread_t thread;
    for (int i = 1; i < argc; i++)
        if (atoi(argv[i]) > 0) ports += !pthread_create(&thread, NULL, port_thread, (void *)(intptr_t)atoi(argv[i]));
    for (char *at = strtok(list, " "); at && !ports; at = strtok(NULL, " "))
        pthread_create(&thread, NULL, port_thread, (void *)(intptr_t)atoi(at));
    for (;;) pause();
}
