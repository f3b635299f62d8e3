"""Images by address: http and https, bounded in size and time; strangers' only when public.

Why not a library: safehttpx 0.1.7 (Gradio's) limits neither size nor total time, follows no
redirect, accepts a host with one public address among private ones, takes 100.64.0.0/10, fec0::/10
and 6to4 for public, and asks dns.google about hosts without a public address. httpx 0.28 has no
total time limit either, connects to a checked address only through a private attribute of its
transport, and saves no lines.
"""

import base64
import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import urllib.request
from concurrent.futures import Future
from urllib.parse import quote, unquote, urljoin, urlsplit

from model.errors import UserError
from model.images.errors import PRIVATE, ImageError

MAX_BYTES = 100 * 2**20
# Seconds for everything together: look-ups, redirects, transfer
SECONDS = 60
# Seconds without a byte
SILENCE = 15
REDIRECTS = 5
REDIRECT_STATUSES = (301, 302, 303, 307, 308)
HEADERS = {"User-Agent": "RemoteGLM", "Connection": "close"}


def fetch(url: str, public_only: bool = False) -> bytes:
    """The bytes behind an http(s) address.

    public_only refuses hosts of which any address is private, loopback, link-local, reserved or
    multicast. The connection goes to the very address that was checked, since a second look-up
    could answer otherwise (DNS rebinding), and every redirect is checked again. The proxy of the
    environment (http_proxy, https_proxy, no_proxy) is used where there is one.

    Raises UserError in a few words, without the address.
    """
    task: Future[bytes] = Future()
    sockets: list[socket.socket] = []

    def work():
        try:
            task.set_result(_download(url, public_only, sockets))
        except BaseException as error:  # noqa: BLE001 -- not swallowed: result() raises it
            task.set_exception(error)

    # A thread, because a socket's timeout ends neither a look-up of a name nor the transfer from
    # a server that sends a byte now and then.
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
                # wakes the thread if it still waits
                sock.shutdown(socket.SHUT_RDWR)


def _download(url, public_only, sockets):
    """The bytes behind the address, after its redirects; sockets: collects all that are opened."""
    for _ in range(REDIRECTS + 1):
        connection, target, headers = _connect(url, public_only, sockets)
        with contextlib.closing(connection):
            connection.request("GET", target, headers=HEADERS | headers)
            with connection.getresponse() as response:
                location = response.headers["Location"]
                if response.status not in REDIRECT_STATUSES or not location:
                    return _read_body(response)
                url = urljoin(url, location)
    raise UserError(f"more than {REDIRECTS} redirects")


def _request_target(url):
    """Path and query of an address, as they stand in the request."""
    parts = urlsplit(url)
    target = parts.path or "/"
    if parts.query:
        target += "?" + parts.query
    # Changes what is not ASCII; escapes stay as they are.
    return quote(target, safe="/%:@!$&'()*+,;=~?")


def _read_body(response):
    if response.status != 200:
        raise UserError(f"the server answered {response.status} {response.reason}")

    too_large = f"more than {MAX_BYTES >> 20} MB; download it yourself and name the file"
    # `length`: bytes still to come, None where the server does not say
    if response.length and response.length > MAX_BYTES:
        raise UserError(too_large)
    content = response.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise UserError(too_large)
    if response.length:
        raise UserError(f"the connection broke, {response.length} bytes are missing")
    return content


def _connect(url, public_only, sockets):
    """(an HTTPConnection, what to ask it for, further headers).

    It is connected to an address of the url's host that has been checked, or to a proxy.
    """
    parts = urlsplit(url)
    host = parts.hostname
    if parts.scheme not in ("http", "https") or not host:
        raise UserError(f"expected an http:// or https:// address, got {url}")
    proxy = _proxy_for(parts)
    if proxy:
        if public_only:
            _refuse_known_private(host)
        return _connect_through(proxy, url, sockets)
    is_https = parts.scheme == "https"
    port = parts.port or (443 if is_https else 80)

    sock = _open_socket(_look_up(host, port, public_only), sockets)
    if is_https:
        context = ssl.create_default_context()
        connection = http.client.HTTPSConnection(host, port, context=context)
        # verifies the certificate for the name, whatever address it led to
        sock = context.wrap_socket(sock, server_hostname=host)
        sockets.append(sock)
    else:
        connection = http.client.HTTPConnection(host, port)

    # http.client does not connect (and look the name up again) when there is a socket.
    connection.sock = sock
    return connection, _request_target(url), {}


def _proxy_for(parts):
    """The proxy that the environment names for an address, split like it, or None.

    Never for this machine and addresses of private networks. Raises UserError for other kinds.
    """
    host = parts.hostname
    with contextlib.suppress(ValueError):
        if not ipaddress.ip_address(host).is_global:
            return None
    if host == "localhost" or urllib.request.proxy_bypass(host):
        return None
    proxies = urllib.request.getproxies()
    name = proxies.get(parts.scheme) or proxies.get("all")
    if not name:
        return None
    proxy = urlsplit(name if "://" in name else f"http://{name}")
    if proxy.scheme != "http" or not proxy.hostname:
        raise UserError(
            f"the environment's {parts.scheme}_proxy is of kind {proxy.scheme}://; expected "
            "http://host:port, or the host in no_proxy"
        )
    return proxy


def _connect_through(proxy, url, sockets):
    """The same as for `_connect`, through a proxy (as urlsplit gives it)."""
    parts = urlsplit(url)
    headers = {}
    if proxy.username:
        user = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
        headers["Proxy-Authorization"] = "Basic " + base64.b64encode(user.encode()).decode()

    target = _request_target(url)
    place = (proxy.hostname, proxy.port or 80)
    if parts.scheme == "https":
        context = ssl.create_default_context()
        connection = http.client.HTTPSConnection(*place, timeout=SILENCE, context=context)
        connection.set_tunnel(parts.hostname, parts.port or 443, headers)
        headers = {}
    else:
        connection = http.client.HTTPConnection(*place, timeout=SILENCE)
        netloc = parts.netloc.rpartition("@")[2]
        target = f"http://{netloc}{target}"
    try:
        connection.connect()
    except ssl.SSLError:  # of the host behind it
        raise
    except OSError as error:
        raise UserError(
            f"the environment's proxy {place[0]}:{place[1]} does not lead there ({error})"
        ) from None
    sockets.append(connection.sock)
    return connection, target, headers


def _refuse_known_private(host):
    """Raises UserError for a host that is private by what this machine knows of it.

    A name that only the proxy can look up is the proxy's to judge.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return
    _refuse_private(host, found)


def _refuse_private(host, found):
    if not all(_is_public(address[0]) for *_, address in found):
        raise ImageError(
            f"{host} is not on the public network; only public addresses are read here", PRIVATE
        )


def _look_up(host, port, public_only):
    """What getaddrinfo knows of a host. Raises UserError unless all its addresses are allowed."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise UserError(f"the host {host} is not known here") from None
    if public_only:
        _refuse_private(host, found)
    return found


def _open_socket(found, sockets):
    """A socket connected to the first of these addresses that answers. Raises OSError."""
    failure = OSError("no address")
    for family, kind, protocol, _, address in found:
        sock = socket.socket(family, kind, protocol)
        sockets.append(sock)
        sock.settimeout(SILENCE)
        try:
            sock.connect(address)
            return sock
        except OSError as error:
            sock.close()
            failure = error
    raise failure


def _is_public(address):
    """Whether an IP address is one of the public network, and no detour to another one."""
    ip = ipaddress.ip_address(address)
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if ip.is_multicast or ip.is_reserved or getattr(ip, "is_site_local", False):
        return False
    # 6to4 (2002::/16) is a tunnel to any IPv4 address.
    return ip.is_global and getattr(ip, "sixtofour", None) is None
