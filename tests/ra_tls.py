#!/usr/bin/env python3
"""Checks a certificate against the text of "interoperable RA-TLS", independently of the program: OpenSSL
reads the certificate, the CBOR (RFC 8949) and the bonds between key, claims and quote are checked here.

usage: ra_tls.py CERTIFICATE_DER     prints the length of the quote; exit code 1 when something is wrong
"""

import hashlib
import re
import subprocess
import sys


def main():
    path = sys.argv[1]
    spki = openssl("x509", "-inform", "DER", "-in", path, "-pubkey", "-noout")
    spki = subprocess.run(["openssl", "pkey", "-pubin", "-outform", "DER"], input=spki, capture_output=True, check=True).stdout
    lines = openssl("asn1parse", "-inform", "DER", "-in", path).decode().splitlines()
    (at,) = [index for index, line in enumerate(lines) if line.endswith(":2.23.133.5.4.9")]
    octets = lines[at + 1]
    assert "OCTET STRING" in octets, "the extension is critical, which verifiers without it would refuse"
    offset, head, length = (int(n) for n in re.match(r" *(\d+):d=\d+ +hl=(\d+) l= *(\d+)", octets).groups())
    with open(path, "rb") as file:
        content = file.read()[offset + head : offset + head + length]
    tag, (quote, claims_buffer) = decode_whole(content)
    assert tag == 60000, tag
    claims = decode_whole(claims_buffer)
    algorithm, key_hash = decode_whole(claims["pubkey-hash"])
    name = {1: "sha256", 7: "sha384", 8: "sha512"}[algorithm]
    assert hashlib.new(name, spki).digest() == key_hash, "the claims are about another key"
    version = int.from_bytes(quote[:2], "little")
    report_data = {3: quote[368:432], 4: quote[568:632], 5: quote[574:638]}[version]
    assert report_data == hashlib.sha256(claims_buffer).digest() + bytes(32), "the quote is about other claims"
    print(len(quote))


def openssl(*args):
    return subprocess.run(["openssl", *args], capture_output=True, check=True).stdout


def decode_whole(data):
    value, rest = decode(data)
    assert not rest, f"{len(rest)} bytes follow"
    return value


def decode(data):
    major, info, data = data[0] >> 5, data[0] & 31, data[1:]
    assert info < 28, "indefinite lengths and reserved values are not allowed"
    if info >= 24:
        size = 1 << (info - 24)
        number, data = int.from_bytes(data[:size], "big"), data[size:]
    else:
        number = info
    if major == 0:
        return number, data
    if major in (2, 3):
        assert len(data) >= number
        return (data[:number] if major == 2 else data[:number].decode()), data[number:]
    if major == 4:
        items = []
        for _ in range(number):
            item, data = decode(data)
            items.append(item)
        return items, data
    if major == 5:
        items = {}
        for _ in range(number):
            key, data = decode(data)
            assert key not in items
            items[key], data = decode(data)
        return items, data
    if major == 6:
        value, data = decode(data)
        return (number, value), data
    raise AssertionError(f"major type {major}")


main()
