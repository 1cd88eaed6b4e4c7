"""Calls actions with GUPnP's control point.

Arguments: a service type, then for each call the name of the action, its in arguments as name=value, its out arguments as
bare names, and "--". What comes of each is printed, a line each. The value "@" is what an earlier call has told under
that name.
"""

import sys

import gi

gi.require_version("GUPnP", "1.6")
from gi.repository import GLib, GObject, GUPnP  # noqa: E402

target, words = sys.argv[1], sys.argv[2:]
calls, call = [], []
for word in words:
    if word == "--":
        calls.append(call)
        call = []
    else:
        call.append(word)

loop = GLib.MainLoop()


def listening():
    """A context. It takes the number of a UDP port for its TCP port, which another connection may have had just now."""
    for left in reversed(range(16)):
        try:
            return GUPnP.Context.new("eth0", 0)
        except GLib.Error:
            if not left:
                raise


context = listening()
point = GUPnP.ControlPoint.new(context, target)


known = {}


def make(proxy, name, arguments):
    given = [word.split("=", 1) for word in arguments if "=" in word]
    wanted = [word for word in arguments if "=" not in word]
    action = GUPnP.ServiceProxyAction.new_from_list(
        name,
        [key for key, _ in given],
        [known[key] if value == "@" else value for key, value in given],
    )
    try:
        proxy.call_action(action, None)
        told = action.get_result_list(wanted, [GObject.TYPE_STRING] * len(wanted))
        told = told[-1] if isinstance(told, tuple) else told
        pairs = [f"{key}={value}" for key, value in zip(wanted, told)]
        known.update(zip(wanted, told))
        print(name, "ok", *pairs, flush=True)
    except GLib.Error as error:
        print(name, "error", error.code, flush=True)


def found(_point, proxy):
    print("found", proxy.get_location(), flush=True)
    try:
        for name, *arguments in calls:
            make(proxy, name, arguments)
    finally:
        loop.quit()


point.connect("service-proxy-available", found)
point.set_active(True)
loop.run()
