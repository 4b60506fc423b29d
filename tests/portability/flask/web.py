"""A page made by C extensions, and what the app finds of its interpreter's surroundings."""
import datetime, os, ssl, subprocess, sys, tempfile, zoneinfo

from cryptography.fernet import Fernet
from flask import Flask, jsonify, render_template
from lxml import etree

app = Flask(__name__)


@app.get("/")
def page():
    document = etree.fromstring("<list><item>kit</item><item>bag</item></list>")
    return render_template("page.html", items=document.xpath("//item/text()"))


@app.get("/facts")
def facts():
    key = Fernet(Fernet.generate_key())
    summer = datetime.datetime(2026, 7, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"))
    child = [sys.executable, "-c", "import lxml.etree, os; print('a child of', os.getppid())"]
    return jsonify(
        worker=os.getpid(),
        executable=sys.executable,
        secret=key.decrypt(key.encrypt(b"kept")).decode(),
        offset=str(summer.utcoffset()),
        authorities=len(ssl.create_default_context().get_ca_certs()),
        child=subprocess.run(child, capture_output=True, text=True, check=True).stdout.strip(),
        temporary=tempfile.gettempdir(),
        loader=[name for name in os.environ if name.startswith("LD_")],
    )
