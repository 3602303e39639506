"""A client that knows nothing of vmsnap but its socket: every service, method and message comes from reflection.

usage: client.py SOCKET VM NAME

Lists the services, takes a snapshot of the VM and follows the operation to its end. Prints one JSON object.
"""

import json
import sys

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase


def main(socket, vm, name):
    # Over a Unix socket grpcio makes the path the authority, which HTTP/2 servers refuse.
    options = [("grpc.default_authority", "localhost")]
    with grpc.insecure_channel(f"unix:{socket}", options=options) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        pool = DescriptorPool(database)

        def method(service, rpc):
            described = pool.FindServiceByName(service).methods_by_name[rpc]
            request, response = (GetMessageClass(kind) for kind in (described.input_type, described.output_type))
            kind = channel.unary_stream if described.server_streaming else channel.unary_unary
            call = kind(
                f"/{service}/{rpc}",
                request_serializer=request.SerializeToString,
                response_deserializer=response.FromString,
            )
            return lambda **fields: call(request(**fields), timeout=120)

        begun = method("vmsnap.v1.SnapshotService", "CreateSnapshot")(vm=vm, name=name)
        states = []
        for news in method("vmsnap.v1.OperationService", "WatchOperation")(operation_id=begun.operation.id):
            if news.WhichOneof("update") == "operation":
                states.append(MessageToDict(news)["operation"]["state"])
        snapshot = method("vmsnap.v1.SnapshotService", "GetSnapshot")(snapshot=begun.snapshot_id)
        health = method("grpc.health.v1.Health", "Check")(service="")
        told = {
            "services": sorted(database.get_services()),
            "states": states,
            "snapshot": MessageToDict(snapshot)["snapshot"],
            "health": MessageToDict(health)["status"],
        }
        json.dump(told, sys.stdout)


main(*sys.argv[1:])
