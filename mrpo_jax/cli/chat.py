# SPDX-License-Identifier: Apache-2.0
"""The terminal of `mrpo chat`: lines in, answers out as they come."""

import contextlib
import sys

from mrpo_jax.errors import InputError

HELP = """\
/help         this
/reset        forget what was said
/system TEXT  say TEXT as the system turn, and begin anew; no TEXT: none
/retry        another answer to the last message
/exit         leave; so does Ctrl-D
Ctrl-C ends an answer.  All else is a message."""
MESSAGE, ANSWER = "you> ", "model> "
# A terminal would obey them: what a model says moves no cursor.
CONTROLS = {
  code: f"\\x{code:02x}"
  for code in (*range(32), *range(127, 160))
  if chr(code) not in "\n\t"
}


def talk(chat):
  """Reads messages and commands until there are no more."""
  is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
  if is_terminal:
    with contextlib.suppress(ImportError):  # with it `input` edits lines
      import readline  # noqa: F401
    print("/help lists the commands")
  while True:
    try:
      line = input(MESSAGE if is_terminal else "").strip()
    except EOFError:
      break
    except KeyboardInterrupt:  # of a line, which is dropped
      print()
      continue
    if line == "/exit":
      return
    if line:
      try:
        _do(chat, line, is_terminal)
      except InputError as error:
        print(f"error: {error}", file=sys.stderr)
      except KeyboardInterrupt:  # again, while an answer ended
        print()
  if is_terminal:
    print()


def _do(chat, line, is_terminal):
  """One command, or a message and its answer."""
  command, _, text = line.partition(" ")
  if command == "/help":
    print(HELP)
  elif command == "/reset":
    chat.reset()
  elif command == "/system":
    chat.system = text.strip()
    chat.reset()
  elif command == "/retry":
    _answer(chat.retry, is_terminal)
  elif command.startswith("/"):
    raise InputError(f"{command}: no such command; /help lists them")
  else:
    _answer(lambda show: chat.answer(line, show), is_terminal)


def _answer(ask, is_terminal):
  """Shows an answer as it comes; Ctrl-C ends it, and the chat goes on."""

  def show(piece):
    text = piece.translate(CONTROLS) if is_terminal else piece
    print(text, end="", flush=True)

  if is_terminal:
    show(ANSWER)
  try:
    ask(show)
  except KeyboardInterrupt:
    show(" [ended]")
  except InputError:
    if is_terminal:
      print(flush=True)
    raise
  print(flush=True)
