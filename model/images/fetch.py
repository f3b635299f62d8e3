"""Pictures by address: http and https only, bounded in size and time; for a stranger's address, the public network only."""

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
from concurrent.futures import Future
from urllib.parse import quote, urljoin, urlsplit

from model.errors import UserError

MAX_BYTES = 100 * 2**20
SECONDS = 60  # for everything together: names, redirects, transfer
SILENCE = 15  # seconds without a byte
REDIRECTS = 5


def fetch(url, public_only=False):
    """The bytes behind an http(s) address. Raises UserError in a few words, without the address.

    public_only refuses hosts of which any address is private, loopback, link-local, reserved or multicast. The connection
    goes to the very address that was checked (a second look-up could answer otherwise), at every redirect anew.
    """
    task, sockets = Future(), []

    def work():
        try:
            task.set_result(_download(url, public_only, sockets))
        except BaseException as error:  # nothing is swallowed: result() raises it
            task.set_exception(error)

    # A thread, because neither looking up a name nor a server that sends a byte now and then ends by a socket's timeout.
    threading.Thread(target=work, daemon=True).start()
    try:
        return task.result(timeout=SECONDS)
    except UserError:
        raise
    except TimeoutError:
        raise UserError(
            f"no answer for {SILENCE} s, or not complete after {SECONDS} s; download it yourself"
        ) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UserError(f"cannot be downloaded ({error or type(error).__name__})") from None
    finally:
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # wakes the thread if it still waits


def _download(url, public_only, sockets):
    for _ in range(REDIRECTS + 1):
        with contextlib.closing(_connect(url, public_only, sockets)) as connection:
            parts = urlsplit(url)
            target = (parts.path or "/") + ("?" + parts.query if parts.query else "")
            target = quote(
                target, safe="/%:@!$&'()*+,;=~?"
            )  # changes what is not ASCII; escapes stay as they are
            connection.request(
                "GET", target, headers={"User-Agent": "RemoteGLM", "Connection": "close"}
            )
            with connection.getresponse() as response:
                if response.status in (301, 302, 303, 307, 308) and response.headers["Location"]:
                    url = urljoin(url, response.headers["Location"])
                    continue
                if response.status != 200:
                    raise UserError(f"the server answered {response.status} {response.reason}")
                content = (
                    response.read(MAX_BYTES + 1) if (response.length or 0) <= MAX_BYTES else None
                )
                if content is None or len(content) > MAX_BYTES:
                    raise UserError(
                        f"more than {MAX_BYTES >> 20} MB; download it yourself and name the file"
                    )
                if response.length:
                    raise UserError(f"the connection broke, {response.length} bytes are missing")
                return content
    raise UserError(f"more than {REDIRECTS} redirects")


def _connect(url, public_only, sockets):
    """An HTTPConnection, connected to an address of the url's host that has been checked."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"expected an http:// or https:// address, got {url}")
    secure, host = parts.scheme == "https", parts.hostname
    port = parts.port or (443 if secure else 80)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise UserError(f"the host {host} is not known here") from None
    if public_only and not all(_is_public(address[0]) for *_, address in found):
        raise UserError(f"{host} is not on the public network; only public addresses are read here")
    for family, kind, protocol, _, address in found:
        sock = socket.socket(family, kind, protocol)
        sockets.append(sock)
        sock.settimeout(SILENCE)
        try:
            sock.connect(address)
            break
        except OSError as error:
            sock.close()
            failure = error
    else:
        raise failure
    if not secure:
        connection = http.client.HTTPConnection(host, port)
    else:
        context = ssl.create_default_context()
        connection = http.client.HTTPSConnection(host, port, context=context)
        sock = context.wrap_socket(
            sock, server_hostname=host
        )  # verifies the name, whatever address it led to
        sockets.append(sock)
    connection.sock = sock  # already there: http.client does not connect by itself
    return connection


def _is_public(address):
    ip = ipaddress.ip_address(address)
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return (
        ip.is_global
        and not (ip.is_multicast or ip.is_reserved or getattr(ip, "is_site_local", False))
        and getattr(ip, "sixtofour", None) is None
    )
