"""Between the processes of one box: descriptors on packet sockets, payloads in shared memory."""
