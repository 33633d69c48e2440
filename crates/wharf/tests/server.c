/* A server that begins to listen when it is told to, and whose timer for idle connections always fires at the worst moment: after KEEP_ALIVE
   milliseconds, just when a request has come, which it then does not read.
   LISTEN_AFTER: milliseconds, negative: never. EXIT_AFTER: milliseconds, with code 3. */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

static int keep_alive;
static int posts;

static int setting(const char *name, int otherwise) {
  const char *text = getenv(name);
  return text ? atoi(text) : otherwise;
}

static void *serve(void *argument) {
  int connection = (int)(long)argument;
  char buffer[65536];
  size_t length = 0;
  for (;;) {
    char *end;
    while (buffer[length] = 0, !(end = strstr(buffer, "\r\n\r\n"))) {
      struct pollfd ready = {.fd = connection, .events = POLLIN};
      if (length == 0 && poll(&ready, 1, keep_alive) == 0) {
        poll(&ready, 1, -1);
        goto done;
      }
      ssize_t n = read(connection, buffer + length, sizeof buffer - 1 - length);
      if (n <= 0) goto done;
      length += (size_t)n;
    }
    char *header = strcasestr(buffer, "content-length:");
    size_t size = (size_t)(end + 4 - buffer) + (header && header < end ? strtoul(header + 15, NULL, 10) : 0);
    while (length < size) {
      ssize_t n = read(connection, buffer + length, sizeof buffer - 1 - length);
      if (n <= 0) goto done;
      length += (size_t)n;
    }
    if (buffer[0] == 'P') __atomic_add_fetch(&posts, 1, __ATOMIC_SEQ_CST);
    memmove(buffer, buffer + size, length - size);
    length -= size;
    char body[32], answer[256];
    int body_length = snprintf(body, sizeof body, "%d", posts);
    int n = snprintf(answer, sizeof answer, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", body_length, body);
    if (write(connection, answer, (size_t)n) != n) break;
  }
done:
  close(connection);
  return NULL;
}

static void *leave(void *argument) {
  usleep((useconds_t)(long)argument * 1000);
  _exit(3);
}

int main(void) {
  pthread_t thread;
  int listen_after = setting("LISTEN_AFTER", 0), exit_after = setting("EXIT_AFTER", -1);
  keep_alive = setting("KEEP_ALIVE", 5000);
  if (exit_after >= 0) pthread_create(&thread, NULL, leave, (void *)(long)exit_after);
  if (listen_after < 0) pause();
  usleep((useconds_t)listen_after * 1000);
  int listener = socket(AF_INET, SOCK_STREAM, 0);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(8080)};
  if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 64)) return 1;
  for (;;) {
    int connection = accept(listener, NULL, NULL);
    if (connection >= 0 && !pthread_create(&thread, NULL, serve, (void *)(long)connection)) pthread_detach(thread);
  }
}
