import contextlib, http.server, io, os, socket, ssl, traceback

CA = "/etc/cloudflare/certs/cloudflare-containers-ca.crt"


class Run(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        code = self.rfile.read(int(self.headers["Content-Length"]))
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            try:
                exec(code, globals().copy())
            except Exception:
                traceback.print_exc(file=out)
        body = out.getvalue().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", 8080), Run).serve_forever()
