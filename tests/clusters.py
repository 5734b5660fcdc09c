"""A real cluster on free ports: three masters, each with a replica unless a test wants none."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import redis
from servers import Server, until

SLOTS = 1 << 14
NODE_TIMEOUT_MS = 2000  # machines that run tests are slow: less, and masters fail each other for nothing


class Cluster:
    """Servers that know of each other; the first half are masters as it begins, each with an equal share."""

    def __init__(self, servers: Sequence[Server], masters: int) -> None:
        self.servers, self.masters = servers, servers[:masters]
        ports = ",".join(f"127.0.0.1:{server.port}" for server in servers[:2])
        self.url = f"redis+cluster://{ports}"

    def join(self) -> None:
        """Deal out the slots, let everyone meet, and give each master its replica."""
        clients = [client(server) for server in self.servers]
        share = SLOTS // len(self.masters)
        for i, node in enumerate(clients):
            node.execute_command("CLUSTER SET-CONFIG-EPOCH", i + 1)
            for other in self.servers[:i]:
                node.execute_command("CLUSTER MEET", "127.0.0.1", other.port, other.settings["cluster-port"])
        for i in range(len(self.masters)):
            last = SLOTS - 1 if i == len(self.masters) - 1 else (i + 1) * share - 1
            clients[i].execute_command("CLUSTER ADDSLOTSRANGE", i * share, last)
        count = len(self.servers)
        until(lambda: all(facts(node)["cluster_known_nodes"] == str(count) for node in clients))
        for i in range(len(self.masters), count):
            clients[i].execute_command("CLUSTER REPLICATE", name_of(clients[i - len(self.masters)]))
        until(lambda: all(facts(node)["cluster_state"] == "ok" for node in clients))
        until(lambda: all(is_synced(node) for node in clients[len(self.masters) :]))
        for node in clients:
            node.close()


@contextmanager
def cluster(masters: int = 3, replicas: bool = True, **settings: Any) -> Iterator[Cluster]:
    """A cluster for as long as the block lasts."""
    own = {
        "cluster-enabled": "yes",
        "cluster-node-timeout": str(NODE_TIMEOUT_MS),
        "cluster-replica-validity-factor": "0",
        "repl-diskless-sync-delay": "0",
        **settings,
    }
    with tempfile.TemporaryDirectory() as room:
        servers: list[Server] = []
        try:
            for number in range(masters * (2 if replicas else 1)):
                folder = os.path.join(room, str(number))
                os.mkdir(folder)
                servers.append(Server(folder, **own, **{"cluster-port": free_port()}))
            found = Cluster(servers, masters)
            found.join()
            yield found
        finally:  # before their folders go, which have the numbers of their processes
            _kill(servers)


def _kill(servers: Sequence[Server]) -> None:
    """All at once: each takes a second to be gone."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(Server.kill, servers))


def client(server: Server) -> Any:
    return redis.Redis(port=server.port, decode_responses=True)


def facts(node: Any) -> dict[str, str]:
    return dict(node.execute_command("CLUSTER INFO"))


def name_of(node: Any) -> str:
    return str(node.execute_command("CLUSTER MYID"))


def is_synced(node: Any) -> bool:
    told = node.info("replication")
    return bool(told["role"] == "slave" and told["master_link_status"] == "up")


def has_all(master: Server, replica: Server) -> None:
    """Wait until the replica has what the master has by now. (WAIT asks for its own connection only.)"""
    with client(master) as node, client(replica) as other:
        offset = node.info("replication")["master_repl_offset"]
        until(lambda: is_synced(other) and other.info("replication")["slave_repl_offset"] >= offset)


def hold_back(master: Server, replica: Server) -> None:
    """Let the replica get nothing any more: its line to the master breaks, and it is not let in again."""
    with client(replica) as node, client(master) as other:
        node.config_set("masterauth", "not what the master asks for")
        other.execute_command("CLIENT KILL TYPE replica")
        until(lambda: not is_synced(node))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
