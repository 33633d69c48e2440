"""Answers with what the standard library has."""

import os
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"hello from python\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


ThreadingTCPServer.allow_reuse_address = True
ThreadingTCPServer.daemon_threads = True
ThreadingTCPServer(("0.0.0.0", int(os.environ["PORT"])), Handler).serve_forever()
