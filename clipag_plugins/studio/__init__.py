"""`clipag studio`: a local page on which a person types a prompt and watches the picture come.

Each tab is a form for one command. What a person chooses becomes the words of that command, which
runs in this process, one at a time. So a picture of the studio is the picture that the command
draws, with the same metadata.

- `controls` and `tools`: the tabs, their settings, and settings to words and back from metadata.
- `jobs`: runs commands one after another, with previews, and stops them.
- `components`, `page` and `server`: what is on the page, what it does, and how it is served. Only
  these modules import Gradio.
"""
