"""Calls actions and follows events with libupnp, the portable SDK for UPnP devices.

Arguments: a service type, then for each call the name of the action, its in arguments as name=value, its out arguments as
bare names, and "--". What comes of each is printed, a line each. The value "@" is what an earlier call has told under
that name. "Subscribe" and "Unsubscribe" are about events, and "Await" with the name of a variable waits for the next
message that has it.
"""

import ctypes
import queue
import sys
import xml.etree.ElementTree as ElementTree
from ctypes import POINTER, byref, c_char_p, c_int, c_void_p

PATIENCE = 30
SEARCH_RESULT, EVENT_RECEIVED = 6, 9

upnp = ctypes.CDLL("libupnp.so.13")
ixml = ctypes.CDLL("libixml.so.10")
Callback = ctypes.CFUNCTYPE(c_int, c_int, c_void_p, c_void_p)
for function, result, arguments in [
    (upnp.UpnpInit2, c_int, [c_char_p, ctypes.c_ushort]),
    (upnp.UpnpRegisterClient, c_int, [Callback, c_void_p, POINTER(c_int)]),
    (upnp.UpnpSearchAsync, c_int, [c_int, c_int, c_char_p, c_void_p]),
    (upnp.UpnpDiscovery_get_Location_cstr, c_char_p, [c_void_p]),
    (upnp.UpnpEvent_get_ChangedVariables, c_void_p, [c_void_p]),
    (upnp.UpnpDownloadXmlDoc, c_int, [c_char_p, POINTER(c_void_p)]),
    (upnp.UpnpResolveURL2, c_int, [c_char_p, c_char_p, POINTER(c_char_p)]),
    (upnp.UpnpMakeAction, c_void_p, [c_char_p, c_char_p, c_int, c_void_p]),
    (
        upnp.UpnpAddToAction,
        c_int,
        [POINTER(c_void_p), c_char_p, c_char_p, c_char_p, c_char_p],
    ),
    (
        upnp.UpnpSendAction,
        c_int,
        [c_int, c_char_p, c_char_p, c_char_p, c_void_p, POINTER(c_void_p)],
    ),
    (upnp.UpnpSubscribe, c_int, [c_int, c_char_p, POINTER(c_int), c_char_p]),
    (upnp.UpnpUnSubscribe, c_int, [c_int, c_char_p]),
    (upnp.UpnpGetErrorMessage, c_char_p, [c_int]),
    (ixml.ixmlDocumenttoString, c_void_p, [c_void_p]),
    (ixml.ixmlFreeDOMString, None, [c_void_p]),
    (ixml.ixmlDocument_free, None, [c_void_p]),
]:
    function.restype, function.argtypes = result, arguments


def good(code):
    if code != 0:
        raise RuntimeError(upnp.UpnpGetErrorMessage(code).decode())


def tree(document):
    """What the library has parsed, in a form that is easier to walk here."""
    text = ixml.ixmlDocumenttoString(document)
    try:
        return ElementTree.fromstring(ctypes.string_at(text))
    finally:
        ixml.ixmlFreeDOMString(text)


def bare(element):
    return element.tag.rpartition("}")[2]


target, words = sys.argv[1], sys.argv[2:]
found, events = queue.Queue(), queue.Queue()


def told(kind, event, _cookie):
    if kind == SEARCH_RESULT:
        found.put(upnp.UpnpDiscovery_get_Location_cstr(event))
    elif kind == EVENT_RECEIVED:
        changed = tree(upnp.UpnpEvent_get_ChangedVariables(event))
        events.put({bare(leaf): leaf.text or "" for prop in changed for leaf in prop})
    return 0


callback = Callback(told)
point = c_int()
good(upnp.UpnpInit2(b"eth0", 0))
good(upnp.UpnpRegisterClient(callback, None, byref(point)))
good(upnp.UpnpSearchAsync(point, 2, target.encode(), None))
# Over IPv6 this library (1.8) wants its events at an address that it does not listen at.
is_over_ipv6 = "IPv6" in target
location = found.get(timeout=PATIENCE)
while (b"[" in location) != is_over_ipv6:
    location = found.get(timeout=PATIENCE)

document = c_void_p()
good(upnp.UpnpDownloadXmlDoc(location, byref(document)))
urls = {}
for service in tree(document).iter():
    leaves = {bare(leaf): (leaf.text or "").strip() for leaf in service}
    if leaves.get("serviceType") == target:
        for name in ["controlURL", "eventSubURL"]:
            url = c_char_p()
            good(upnp.UpnpResolveURL2(location, leaves[name].encode(), byref(url)))
            urls[name] = url.value
print("found", location.decode(), flush=True)

known, sid = {}, ctypes.create_string_buffer(44)


def call(name, arguments):
    action = c_void_p(upnp.UpnpMakeAction(name.encode(), target.encode(), 0, None))
    for key, value in (word.split("=", 1) for word in arguments if "=" in word):
        value = known[key] if value == "@" else value
        added = [text.encode() for text in (name, target, key, value)]
        good(upnp.UpnpAddToAction(byref(action), *added))
    answer = c_void_p()
    code = upnp.UpnpSendAction(
        point, urls["controlURL"], target.encode(), None, action, byref(answer)
    )
    if code > 0:
        return f"error {code}"
    good(code)
    leaves = {bare(leaf): leaf.text or "" for leaf in tree(answer).iter()}
    ixml.ixmlDocument_free(answer)
    wanted = {word: leaves[word] for word in arguments if "=" not in word}
    known.update(wanted)
    return " ".join(["ok", *(f"{key}={value}" for key, value in wanted.items())])


def do(name, arguments):
    if name == "Subscribe":
        seconds = c_int(300)
        good(upnp.UpnpSubscribe(point, urls["eventSubURL"], byref(seconds), sid))
        return "ok"
    if name == "Unsubscribe":
        good(upnp.UpnpUnSubscribe(point, sid))
        return "ok"
    if name == "Await":
        while True:
            changed = events.get(timeout=PATIENCE)
            if arguments[0] in changed:
                return f"ok {arguments[0]}={changed[arguments[0]]}"
    return call(name, arguments)


step = []
for word in words:
    if word == "--":
        print(step[0], do(step[0], step[1:]), flush=True)
        step = []
    else:
        step.append(word)
upnp.UpnpFinish()
