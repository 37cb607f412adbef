"""The page of a live session, its health and its metrics.

Every module imports without the packages of the extra `live`, as a device's kit has none of them: what serves imports
them when it is called.
"""
