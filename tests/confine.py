"""Starts a program as a runtime starts a container's: in a root, as an ordinary user without capabilities, under a
seccomp profile, which libseccomp turns into a filter as it does for runc.

usage: confine.py PROFILE ROOT USER PROGRAM [ARGUMENT]...
"""

import ctypes
import errno
import json
import os
import sys

ACTIONS = {"SCMP_ACT_ALLOW": 0x7FFF0000, "SCMP_ACT_ERRNO": 0x00050000}
OPERATORS = {"SCMP_CMP_LT": 2, "SCMP_CMP_EQ": 4, "SCMP_CMP_GT": 6, "SCMP_CMP_MASKED_EQ": 7}
# What libseccomp says of a name that is newer than it.
UNKNOWN = -1


class Compare(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


def action(name, value):
    return ACTIONS[name] | (value if name == "SCMP_ACT_ERRNO" else 0)


def prepared(library, profile):
    library.seccomp_init.restype = ctypes.c_void_p
    default = action(profile["defaultAction"], profile["defaultErrnoRet"])
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(default)))
    unknown = 0
    for rule in profile["syscalls"]:
        # As runc reads an argument: compared with a value, or under a mask with another.
        args = rule.get("args", [])
        found = [Compare(a["index"], OPERATORS[a["op"]], a["value"], a.get("valueTwo", 0)) for a in args]
        compares = (Compare * len(found))(*found)
        for name in rule["names"]:
            number = library.seccomp_syscall_resolve_name(name.encode())
            if number == UNKNOWN:
                unknown += 1
                continue
            wanted = action(rule["action"], rule.get("errnoRet", errno.EPERM))
            code = library.seccomp_rule_add_array(context, ctypes.c_uint32(wanted), number, len(found), compares)
            assert code == 0, (name, code)
    assert unknown < 40, unknown
    return context


def main():
    path, root, user, *command = sys.argv[1:]
    with open(path, encoding="utf-8") as file:
        profile = json.load(file)
    library = ctypes.CDLL("libseccomp.so.2")
    context = prepared(library, profile)
    os.chroot(root)
    os.chdir("/")
    os.setgroups([])
    os.setgid(int(user))
    os.setuid(int(user))
    # With no_new_privs, which is libseccomp's default.
    assert library.seccomp_load(context) == 0
    os.execv(command[0], command)


main()
