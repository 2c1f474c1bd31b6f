"""Between this process and one server: an HTTP exchange, of which anything may come back.

::

    exchange.py     sends a call, gives its reply; what goes wrong is one of our errors
    body.py         the body of a request, and what becomes of it
    address.py      where a server is            api_key.py      the secret it asks for
    server_sent.py  events of a stream           complaint.py    what a server says of an error
    connection_errors.py   what an error of the connection says of the server
    decoding.py     foreign JSON, checked against types
"""
