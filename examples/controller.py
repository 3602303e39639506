"""A controller that takes the reports of vmsnapd: what a controller in any language has to do, in one page.

Made once from the protos:

    mkdir stubs
    python3 -m grpc_tools.protoc -I proto --python_out=stubs --grpc_python_out=stubs \
        proto/vmsnap/v1/*.proto proto/vmsnap/controller/v1/*.proto

Then, with `[controller] endpoint = "http://127.0.0.1:7443"` in a daemon's configuration:

    PYTHONPATH=stubs python3 examples/controller.py 127.0.0.1:7443 reports.db

It needs grpcio, grpcio-tools and protobuf. For other machines use `grpc.ssl_server_credentials` with
`require_client_auth=True`: see docs/API.md.
"""

import signal
import sqlite3
import sys
import threading
from concurrent import futures

import grpc
from google.protobuf.json_format import MessageToJson
from vmsnap.controller.v1 import controller_pb2 as wire
from vmsnap.controller.v1 import controller_pb2_grpc as service

# A node holds a thread for as long as it reports.
MOST_NODES = 64


class Reports:
    """What was reported. A report is on the disk when `keep` returns, and only then is it acknowledged."""

    def __init__(self, path):
        self.lock = threading.Lock()
        self.database = sqlite3.connect(path, check_same_thread=False)
        self.database.executescript(
            "PRAGMA synchronous = FULL;"
            "CREATE TABLE IF NOT EXISTS report"
            " (node TEXT, outbox TEXT, sequence INTEGER, body TEXT, PRIMARY KEY (outbox, sequence));"
            "CREATE TABLE IF NOT EXISTS complete (outbox TEXT PRIMARY KEY);"
        )

    def welcome(self, hello):
        """The last item that is here of an outbox, and whether something may be missing."""
        with self.lock, self.database:
            last = self.database.execute("SELECT max(sequence) FROM report WHERE outbox = ?", [hello.outbox_id])
            last = last.fetchone()[0] or 0
            if last < hello.acknowledged_sequence:
                # We have had more, and have lost it; the node does not keep what was acknowledged.
                self.database.execute("DELETE FROM complete WHERE outbox = ?", [hello.outbox_id])
            complete = self.database.execute("SELECT 1 FROM complete WHERE outbox = ?", [hello.outbox_id])
            return last, complete.fetchone() is None

    def keep(self, hello, report):
        """Keeps an item. One that came before is no error: items come at least once."""
        body = MessageToJson(report, preserving_proto_field_name=True, indent=None)
        row = [hello.node.id, hello.outbox_id, report.sequence, body]
        with self.lock, self.database:
            self.database.execute("INSERT OR IGNORE INTO report VALUES (?, ?, ?, ?)", row)

    def complete(self, hello):
        """An inventory has come to its end: from here on items tell everything."""
        with self.lock, self.database:
            self.database.execute("INSERT OR IGNORE INTO complete VALUES (?)", [hello.outbox_id])


class Controller(service.ControllerServiceServicer):
    def __init__(self, reports):
        self.reports = reports

    def Report(self, requests, context):
        first = next(requests)
        if first.WhichOneof("message") != "hello":
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "the first report is not a hello")
        hello = first.hello
        last, lacks = self.reports.welcome(hello)
        yield wire.ReportResponse(welcome=wire.Welcome(acknowledged_sequence=last, send_inventory=lacks))
        for report in requests:
            if report.sequence:
                self.reports.keep(hello, report)
                yield wire.ReportResponse(acknowledge=wire.Acknowledge(sequence=report.sequence))
            elif report.WhichOneof("message") == "inventory" and report.inventory.last:
                # A real controller has taken the parts in before it says so.
                self.reports.complete(hello)
            # Else the progress of an operation, or a heartbeat: true now, and not worth keeping.
            print(hello.node.name, report.sequence or "-", report.WhichOneof("message"), flush=True)


def main(address, path):
    server = grpc.server(futures.ThreadPoolExecutor(MOST_NODES))
    service.add_ControllerServiceServicer_to_server(Controller(Reports(path)), server)
    server.add_insecure_port(address)
    server.start()
    signal.signal(signal.SIGTERM, lambda *_: server.stop(grace=1))
    print("listening on", address, flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
