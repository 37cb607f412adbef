"""The web page of a live session, its health endpoint and its metrics.

Every module can be imported without the packages of the extra `live`, which a device's kit lacks; the serving code
imports them when called.
"""
