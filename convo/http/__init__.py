"""HTTP/1.1 on client connections, and the server that accepts them; paths are given to it from outside."""
