"""Run by `python3 -c` with the modules to import as arguments; see python.rs."""


def _import(names):
    import importlib
    import sys
    for name in names:
        try:
            importlib.import_module(name)
        except BaseException as error:
            return f"import {name}: {type(error).__name__}: {error}"
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    import gc
    gc.collect()
    gc.freeze()
    return None


def _foreign_handlers():
    import signal
    import sys
    skipped = {signal.SIGKILL, signal.SIGSTOP}
    return [s for s in signal.valid_signals() if s not in skipped and signal.getsignal(s) is None]


def _wait():
    """Returns in the restored process only."""
    import os
    import sys
    import warnings
    before = _given()
    problem = _import(sys.argv[1:])
    if problem is None and _foreign_handlers():
        problem = f"a module handles the signals {_foreign_handlers()} outside Python"
    if problem is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            child = os.fork()
        if child:
            # The one that is captured is another process than the one that will go on: whoever looks at its process id sees a fork.
            os.close(3)
            os.waitpid(child, 0)
            os._exit(0)
    os.write(3, (problem or "ready").encode("utf-8", "replace"))
    os.close(3)
    # The end of the file is the end of whoever would have captured it.
    changed = dict(os.environb)
    if problem is not None or not os.read(0, 1):
        os._exit(1)
    return before, changed


def _given():
    with open("/proc/self/environ", "rb") as file:
        entries = file.read().split(b"\0")
    # As for the interpreter, the first of a name counts.
    return dict(entry.split(b"=", 1) for entry in reversed(entries) if b"=" in entry[1:])


def _environment(before, changed):
    import os
    import time
    given = _given()
    # What the interpreter (LC_CTYPE) and the modules have changed in theirs, they would have changed in this one.
    for key in before.keys() | changed.keys():
        if before.get(key) != changed.get(key) and before.get(key) == given.get(key):
            given.pop(key, None)
            if key in changed:
                given[key] = changed[key]
    os.environ.clear()
    for key, value in given.items():
        os.environb[key] = value
    time.tzset()


def _afresh():
    """What must not be the same in two processes, and what the kernel keeps for each."""
    import os
    import signal
    import sys
    modules = sys.modules
    if "random" in modules:
        modules["random"].seed()
    if "numpy.random" in modules:
        modules["numpy.random"].seed()
    if "_ssl" in modules:
        modules["_ssl"].RAND_add(os.urandom(32), 32.0)
    if "multiprocessing.process" in modules:
        modules["multiprocessing.process"].current_process().authkey = os.urandom(32)
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        if handler is not signal.SIG_DFL and handler is not None:
            signal.signal(number, handler)
    faulthandler = modules.get("faulthandler")
    if faulthandler is not None and faulthandler.is_enabled():
        faulthandler.disable()
        faulthandler.enable()


def _command():
    """The words behind the interpreter: which kind of program, and its own arguments."""
    import os
    import sys
    with open("/proc/self/cmdline", "rb") as file:
        words = [os.fsdecode(word) for word in file.read().split(b"\0")[:-1]]
    sys.orig_argv = list(words)
    at = 1
    while words[at] == "-u":
        at += 1
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(write_through=True)
    if words[at] in ("-m", "-c"):
        return words[at], words[at + 1], words[at + 2:]
    return "", words[at], words[at + 1:]


def _main_module(**attributes):
    import builtins
    import sys
    import types
    main = types.ModuleType("__main__")
    main.__builtins__ = builtins
    main.__annotations__ = {}
    for name, value in attributes.items():
        setattr(main, name, value)
    sys.modules["__main__"] = main
    return main.__dict__


def _run(kind, what, arguments):
    import os
    import runpy
    import sys
    if sys.path and sys.path[0] == "":
        del sys.path[0]
    if kind == "-m":
        sys.argv = ["-m", *arguments]
        sys.path.insert(0, os.getcwd())
        _main_module()
        runpy._run_module_as_main(what)
    elif kind == "-c":
        sys.argv = ["-c", *arguments]
        sys.path.insert(0, "")
        exec(compile(what, "<string>", "exec"), _main_module())
    elif os.path.isdir(what) or what.endswith((".zip", ".pyz")):
        sys.argv = [what, *arguments]
        runpy.run_path(what, run_name="__main__")
    else:
        from importlib.machinery import SourceFileLoader
        sys.argv = [what, *arguments]
        sys.path.insert(0, os.path.dirname(os.path.realpath(what)))
        loader = SourceFileLoader("__main__", what)
        try:
            source = loader.get_data(what)
        except OSError as error:
            print(f"{sys.executable}: can't open file {os.path.abspath(what)!r}: [Errno {error.errno}] {error.strerror}", file=sys.stderr)
            raise SystemExit(2) from None
        names = _main_module(__file__=os.path.abspath(what), __loader__=loader, __cached__=None)
        exec(compile(source, what, "exec"), names)


def _go(before, changed):
    import sys
    _environment(before, changed)
    _afresh()
    try:
        _run(*_command())
    except SystemExit:
        raise
    except BaseException as error:
        # As without this file: the traceback begins with the program.
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_globals is globals():
            trace = trace.tb_next
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 1) from None


_go(*_wait())
