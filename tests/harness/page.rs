//! What a browser asks a web server, and the guestbook in particular.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The response to a request, as far as it came; nothing if nobody listens at the address.
pub fn ask(address: &str, request: &str) -> String {
    let Ok(mut stream) = TcpStream::connect(address) else { return String::new() };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // The other side may be killed meanwhile.
    let _ = stream.write_all(request.as_bytes());
    let mut response = Vec::new();
    let _ = stream.read_to_end(&mut response);
    String::from_utf8_lossy(&response).into_owned()
}

/// The response to a GET.
pub fn get(address: &str, path: &str) -> String {
    ask(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
}

/// Writes into the guestbook.
#[track_caller]
pub fn sign(address: &str, message: &str) {
    let body = format!("name=Ada&message={message}");
    let fields = "Host: x\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length:";
    let response = ask(address, &format!("POST /sign HTTP/1.1\r\n{fields} {}\r\n\r\n{body}", body.len()));
    assert!(response.starts_with("HTTP/1.1 303"), "{response}");
}
