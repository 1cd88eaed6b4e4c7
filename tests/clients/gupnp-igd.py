"""Opens a TCP port with GUPnPSimpleIgd, and closes it on SIGUSR1.

Arguments: address and port of this host, external port, seconds of the lease. What happens is printed, a line each.
"""

import signal
import sys

import gi

gi.require_version("GUPnPIgd", "1.0")
from gi.repository import GLib, GUPnPIgd  # noqa: E402

address, internal, external, lease = sys.argv[1], *map(int, sys.argv[2:5])
igd = GUPnPIgd.SimpleIgd()


def mapped(_igd, protocol, external_address, _replaces, external_port, *_rest):
    print("mapped", protocol, external_address, external_port, flush=True)


def failed(_igd, error, protocol, external_port, *_rest):
    print("failed", protocol, external_port, error, flush=True)


def close():
    print("closing", external, flush=True)
    igd.remove_port("TCP", external)
    return GLib.SOURCE_REMOVE


igd.connect("mapped-external-port", mapped)
igd.connect("error-mapping-port", failed)
igd.add_port("TCP", external, address, internal, lease, "GUPnP client")
GLib.unix_signal_add(GLib.PRIORITY_DEFAULT, signal.SIGUSR1, close)
GLib.MainLoop().run()
