"""What a connection may take of the server, before any call on it is known to be somebody's."""

from __future__ import annotations

MAX_MESSAGE = 4 << 20
"""Bytes of one message, as it is sent and once it is decompressed. gRPC refuses a longer one unread."""
LOOKAHEAD = 1 << 16
"""Bytes of one stream that are received before the server asks for them."""
MAX_METADATA = 8 << 10
"""Bytes of a call's headers."""
MAX_CALLS = 1_024
"""Calls under way on one connection. A client of gRPC keeps more to itself until others have ended."""
MAX_BURST = 4_096
"""Calls that have come and were not looked at yet. Of more, some are cancelled, and all above twice as many."""
MAX_CONNECTIONS = 4_096
"""Connections of all clients together. More are closed at once."""
IDLE_SECONDS = 600
"""A connection without a call for so long is closed. Clients of gRPC connect again when they need to."""
HANDSHAKE_SECONDS = 20
"""A connection that has not said by then that it speaks HTTP/2 is closed."""
KEEPALIVE_SECONDS = 120
"""A connection of which nothing comes for so long is asked whether its client is still there."""
KEEPALIVE_ANSWER_SECONDS = 20
"""One that does not answer that by then is closed, and its calls are cancelled."""
PING_SECONDS = 10
"""A client may ask as much no more often than this, with or without a call."""
PING_STRIKES = 2
"""So many times more often; then its connection is closed."""

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.so_reuseport", 0),  # else a second server could take the same port, and half of the calls
    # Without these two, a stream whose server is busy is read ahead without a limit: by up to 400 MB, as measured.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", LOOKAHEAD),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_metadata_size", MAX_METADATA),
    ("grpc.absolute_max_metadata_size", MAX_METADATA),
    ("grpc.max_concurrent_streams", MAX_CALLS),
    ("grpc.http.overload_protection", 1),  # calls that were reset and are not ended yet count among the streams
    ("grpc.server.max_pending_requests", MAX_BURST),
    ("grpc.server.max_pending_requests_hard_limit", 2 * MAX_BURST),
    ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
    ("grpc.max_connection_idle_ms", IDLE_SECONDS * 1000),
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_SECONDS * 1000),
    ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_ANSWER_SECONDS * 1000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", PING_SECONDS * 1000),
    ("grpc.http2.max_ping_strikes", PING_STRIKES),
)
"""Of the gRPC server: https://grpc.github.io/grpc/core/group__grpc__arg__keys.html"""
