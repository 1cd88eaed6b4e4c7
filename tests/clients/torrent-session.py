"""Opens ports with libtorrent, the library of qBittorrent and Deluge, and closes them on SIGUSR1.

Arguments: address of this host, port. What happens is printed, a line each.
"""

import signal
import sys

import libtorrent

address, port = sys.argv[1], int(sys.argv[2])
done = []
signal.signal(signal.SIGUSR1, lambda *_: done.append(True))
session = libtorrent.session(
    {
        "listen_interfaces": f"{address}:{port}",
        "enable_upnp": True,
        "enable_natpmp": False,
        "enable_lsd": False,
        "enable_dht": False,
        "alert_mask": libtorrent.alert.category_t.all_categories,
    }
)
while not done:
    session.wait_for_alert(200)
    for alert in session.pop_alerts():
        if "map" in alert.what():
            print(alert.what(), alert.message(), flush=True)
print("closing", flush=True)
# Its end takes back what it has opened.
del session
print("closed", flush=True)
