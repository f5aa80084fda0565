"""Keys of encrypted images as guest-components (8246e5e) wrap and unwrap them: its key provider's `enc_mods`, and the data
hub's annotation packet with a Trustee that is a directory of resources. A command of ocicrypt instead of a service.

usage: keyprovider.py RESOURCES <REQUEST   (both in JSON, as ocicrypt has them)
"""

import base64
import ctypes
import json
import os
import sys

NAME = "attestation-agent"
TAG_LEN = 16
# EVP_CTRL_AEAD_GET_TAG and _SET_TAG.
GET_TAG, SET_TAG = 0x10, 0x11


def gcm(key, iv, data, tag=None):
    """AES-256-GCM by libcrypto: what it is sealed to, with its tag behind it, or opened from."""
    library = ctypes.CDLL("libcrypto.so.3")
    library.EVP_CIPHER_CTX_new.restype = library.EVP_aes_256_gcm.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.EVP_CIPHER_CTX_new())
    cipher = ctypes.c_void_p(library.EVP_aes_256_gcm())
    out, count, room = ctypes.create_string_buffer(len(data) + 32), ctypes.c_int(), ctypes.create_string_buffer(TAG_LEN)
    assert len(key) == 32 and len(iv) == 12
    assert library.EVP_CipherInit_ex(context, cipher, None, key, iv, int(tag is None)) == 1
    assert library.EVP_CipherUpdate(context, out, ctypes.byref(count), data, len(data)) == 1
    found = out.raw[: count.value]
    if tag is not None:
        assert library.EVP_CIPHER_CTX_ctrl(context, SET_TAG, TAG_LEN, ctypes.create_string_buffer(tag, TAG_LEN)) == 1
    assert library.EVP_CipherFinal_ex(context, out, ctypes.byref(count)) == 1, "another key"
    if tag is None:
        assert library.EVP_CIPHER_CTX_ctrl(context, GET_TAG, TAG_LEN, room) == 1
        found += room.raw
    return found


def wrap(request):
    (given,) = request["ec"]["Parameters"][NAME]
    fields = dict(field.split("=", 1) for field in base64.b64decode(given).decode().split("::"))
    with open(fields["keypath"], "rb") as file:
        key = file.read()
    iv = os.urandom(12)
    sealed = gcm(key, iv, base64.b64decode(request["optsdata"]))
    packet = {"kid": fields["keyid"], "wrapped_data": text(sealed), "iv": text(iv), "wrap_type": "A256GCM"}
    return {"keywrapresults": {"annotation": text(json.dumps(packet).encode())}}


def unwrap(request, resources):
    packet = json.loads(base64.b64decode(request["annotation"]))
    assert packet["wrap_type"] == "A256GCM" and packet["kid"].startswith("kbs:///"), packet
    with open(f"{resources}/{packet['kid'].removeprefix('kbs:///')}", "rb") as file:
        key = file.read()
    sealed = base64.b64decode(packet["wrapped_data"])
    opened = gcm(key, base64.b64decode(packet["iv"]), sealed[:-TAG_LEN], sealed[-TAG_LEN:])
    return {"keyunwrapresults": {"optsdata": text(opened)}}


def text(data):
    return base64.b64encode(data).decode()


def main():
    request = json.load(sys.stdin)
    if request["op"] == "keywrap":
        answer = wrap(request["keywrapparams"])
    else:
        answer = unwrap(request["keyunwrapparams"], sys.argv[1])
    print(json.dumps(answer))


main()
