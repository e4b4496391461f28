"""ComfyUI's web protocol on the embedded runtime: the real frontend, and API clients, without ComfyUI.

`app.create` makes the application, `serve.serve` runs it. One event loop owns the queue and the sockets and is never
blocked; one worker thread owns the executor and so the models; files are read and written on other threads.
"""
