"""A small W&B server for tests: it answers the requests of a run, remembers them, and can go away."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeWandb:
    """Serves on loopback while the context lasts, or until :meth:`go_away`.

    Attributes:
        url: for ``WANDB_BASE_URL``.
        runs: for each run's id, the variables of its creation (groupName, displayName, tags, ...).
        refuse: whether the server refuses every key.
        sent: the parts of the runs' files (history, summary, ...) that were sent, as text.
    """

    def __init__(self) -> None:
        self.runs: dict[str, dict] = {}
        self.sent: list[str] = []
        self.refuse = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FakeWandb":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *raised) -> None:
        self.go_away()

    def go_away(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, query: str, variables: dict) -> dict:
        """Give the answer to a GraphQL query."""
        found = re.search(r"(?:query|mutation) (\w+)", query)
        assert found is not None, query
        name = found[1]
        if name == "Viewer":
            return {"viewer": {"id": "1", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": None}}
        if name == "UpsertBucket":
            run = variables["name"]
            self.runs.setdefault(run, {}).update({key: value for key, value in variables.items() if value})
            project = {"id": "1", "name": variables["project"], "entity": {"id": "1", "name": "me"}}
            bucket = {"id": run, "name": run, "displayName": run, "project": project, "historyLineCount": 0}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if name == "CreateRunFiles":
            return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": []}}
        return {}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if server.refuse:
                    self.send_error(401)
                    return
                if self.path == "/graphql":
                    asked = json.loads(body)
                    answer = {"data": server.answer(asked["query"], asked.get("variables") or {})}
                else:
                    server.sent.append(body.decode(errors="replace"))
                    answer = {}
                answer = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_PUT = do_POST

            def log_message(self, format, *arguments) -> None:
                pass

        return Handler
