"""Takes the port that a sidecar listens on, before anything costly is done; several workers share it."""

from __future__ import annotations

import errno
import socket
import ssl
import sys
from typing import Final

from riskengine.errors import RiskEngineError
from riskengine.service.settings import Settings

CONNECTIONS_WAITING: Final = 2_048  # to be accepted: a campaign opens with a burst


def take_port(settings: Settings) -> socket.socket:
    """A socket that listens where the settings say (port 0: any). RiskEngineError where it cannot be had."""
    port, host = settings.port, settings.host
    family, address = settings.address
    taken = socket.socket(family, socket.SOCK_STREAM)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
        taken.listen(CONNECTIONS_WAITING)
    except OSError as error:
        taken.close()
        if error.errno == errno.EADDRINUSE:
            message = (
                f"port {port} of {host} is taken, maybe by another sidecar: stop the program that has it "
                f"(`{_who_has(port)}` says which), or choose another port with --port (--port 0 takes any "
                "that is free)"
            )
        elif error.errno in (errno.EACCES, errno.EPERM):
            message = (
                f"port {port} of {host} may not be used by this user: choose one above 1023 with --port, "
                "such as 8080"
            )
        elif error.errno == errno.EADDRNOTAVAIL:
            message = (
                f"{host} is no address of this machine: give --host one that it has, 127.0.0.1 to answer "
                "only its own programs, or 0.0.0.0 for all"
            )
        else:
            message = (
                f"port {port} of {host} cannot be used ({error.strerror}): choose another with --host and "
                "--port"
            )
        raise RiskEngineError(message) from None
    return taken


def _who_has(port: int) -> str:
    """The command that names who listens on a port, by system."""
    if sys.platform == "win32":
        return f"netstat -ano | findstr :{port}"
    return f"ss -ltnp sport = :{port}" if sys.platform == "linux" else f"lsof -iTCP:{port} -sTCP:LISTEN"


def check_tls(settings: Settings) -> None:
    """Look that the certificate and its key can be used, and belong together. Raises RiskEngineError."""
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise RiskEngineError("TLS takes both: a certificate (--tls-cert) and its key (--tls-key)")
    if settings.tls_cert is None or settings.tls_key is None:
        return
    for path in (settings.tls_cert, settings.tls_key):
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise RiskEngineError(f"{path} cannot be read: {error.strerror}") from None
    try:
        # The key's password would be asked for on the terminal: a service has none.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password=lambda: "")
    except (ssl.SSLError, ValueError) as error:
        why = getattr(error, "reason", None) or "the key is locked by a password"
        raise RiskEngineError(
            f"{settings.tls_cert} and {settings.tls_key} are no certificate with its key, as PEM: {why}"
        ) from None
