//! HTTP/1.1 (RFC 9112) as far as a unix socket needs it: requests in, responses out, no chunks, no proxies.
//!
//! Bytes come from whoever may connect. Nothing here panics, and no length is trusted before it is bounded.

use serde_json::Value;

/// Longest request line with all headers, in bytes.
pub const LONGEST_HEAD: usize = 8 * 1024;
/// Longest body, in bytes.
pub const LONGEST_BODY: usize = 64 * 1024;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request {
    /// `GET`
    pub method: String,
    /// The path without the query, decoded, and split at each `/`: `["v1", "status"]`.
    pub path: Vec<String>,
    /// Names and values of the query, decoded.
    pub query: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// The connection stays open after the response.
    pub keep_alive: bool,
}

/// What stands at the beginning of a client's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    /// A request, and how many bytes it has.
    Request(Request, usize),
    /// The beginning of one; `true`: its sender waits for `100 Continue` before it sends the body.
    Partial(bool),
    /// None, and nothing behind it can be trusted to be one.
    Bad(Bad),
}

/// Why bytes are no request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bad {
    /// It does not follow RFC 9112.
    Syntax,
    /// The head is too long.
    Head,
    /// The body is too long.
    Body,
    /// The body has no length that is said beforehand.
    Chunked,
}

impl Bad {
    /// Status code, and what to say.
    pub const fn answer(self) -> (u16, &'static str, &'static str) {
        match self {
            Self::Syntax => (400, "this is no HTTP/1.1 request", "send one, as `curl --unix-socket` does"),
            Self::Head => (431, "the request line and headers have more than 8 KiB", "leave headers out"),
            Self::Body => (413, "the body has more than 64 KiB", "no request needs as many"),
            Self::Chunked => (411, "the body comes in chunks", "send Content-Length instead"),
        }
    }
}

impl Request {
    /// A parameter by name: from the query, else from the JSON object in the body. Numbers and booleans come as text.
    pub fn parameter(&self, name: &str) -> Option<String> {
        if let Some((_, value)) = self.query.iter().find(|(known, _)| known == name) {
            return Some(value.clone());
        }
        match serde_json::from_slice::<Value>(&self.body).ok()?.get(name)? {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => number.as_i64().map(|number| number.to_string()),
            Value::Bool(set) => Some(u8::from(*set).to_string()),
            _ => None,
        }
    }

    /// True if a parameter is there and not `0` or `false`.
    pub fn flag(&self, name: &str) -> bool {
        self.parameter(name).is_some_and(|value| value != "0" && value != "false")
    }

    /// True for a body that is neither empty nor a JSON object.
    pub fn has_wrong_body(&self) -> bool {
        !self.body.trim_ascii().is_empty()
            && !serde_json::from_slice::<Value>(&self.body).is_ok_and(|value| value.is_object())
    }
}

/// Reads the request at the beginning of `bytes`.
pub fn parse(bytes: &[u8]) -> Parsed {
    // RFC 9112, 2.2: empty lines before a request are ignored.
    let skipped = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    let rest = &bytes[skipped..];
    let Some(length) = head_length(&rest[..rest.len().min(LONGEST_HEAD.saturating_sub(skipped))]) else {
        let long = skipped + rest.len() >= LONGEST_HEAD;
        return if long {
            Parsed::Bad(Bad::Head)
        } else if begins_badly(rest) {
            Parsed::Bad(Bad::Syntax)
        } else {
            Parsed::Partial(false)
        };
    };
    let Some((request, framing)) = str::from_utf8(&rest[..length]).ok().and_then(head) else {
        return Parsed::Bad(Bad::Syntax);
    };
    if framing.chunked {
        return Parsed::Bad(Bad::Chunked);
    }
    if framing.length > LONGEST_BODY {
        return Parsed::Bad(Bad::Body);
    }
    match rest.get(length..length + framing.length) {
        Some(body) => {
            Parsed::Request(Request { body: body.to_owned(), ..request }, skipped + length + framing.length)
        }
        None => Parsed::Partial(framing.expects_continue && rest.len() == length),
    }
}

/// Where the head ends: after the first empty line.
fn head_length(bytes: &[u8]) -> Option<usize> {
    let crlf = bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4);
    let bare = bytes.windows(2).position(|window| window == b"\n\n").map(|at| at + 2);
    crlf.into_iter().chain(bare).min()
}

/// True if no request begins like this: a client that talks something else need not wait for a time-out.
fn begins_badly(bytes: &[u8]) -> bool {
    let method = bytes.split(|byte| *byte == b' ').next().unwrap_or_default();
    method.len() > 16 || method.iter().any(|byte| !byte.is_ascii_uppercase())
}

/// How long the body is.
#[derive(Default)]
struct Framing {
    length: usize,
    chunked: bool,
    expects_continue: bool,
}

fn head(text: &str) -> Option<(Request, Framing)> {
    let mut lines = text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line));
    let mut words = lines.next()?.split(' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let method_fits = !method.is_empty() && method.bytes().all(|byte| byte.is_ascii_uppercase());
    if words.next().is_some() || !method_fits || !matches!(version, "HTTP/1.1" | "HTTP/1.0") {
        return None;
    }
    let mut request = target_of(target)?;
    request.method = method.to_owned();
    request.keep_alive = version == "HTTP/1.1";
    let framing = headers(lines, &mut request.keep_alive)?;
    Some((request, framing))
}

fn headers<'a>(lines: impl Iterator<Item = &'a str>, keep_alive: &mut bool) -> Option<Framing> {
    let mut framing = Framing::default();
    let mut length = None;
    for line in lines.take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':')?;
        let value = value.trim_matches([' ', '\t']);
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if name.is_empty() || !name.bytes().all(is_token) {
            return None;
        }
        match name.to_ascii_lowercase().as_str() {
            // Digits alone; said twice, it has to be the same.
            "content-length" => {
                let known = length.replace(decimal(value)?);
                if known.is_some_and(|known| Some(known) != length) {
                    return None;
                }
            }
            "transfer-encoding" => framing.chunked = true,
            "expect" => framing.expects_continue = value.eq_ignore_ascii_case("100-continue"),
            "connection" if value.eq_ignore_ascii_case("close") => *keep_alive = false,
            _ => {}
        }
    }
    framing.length = length.unwrap_or(0);
    Some(framing)
}

fn decimal(text: &str) -> Option<usize> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // More digits than a number has are a body that is too long.
    digits.then(|| text.parse().unwrap_or(usize::MAX))
}

/// Path and query. `http://host/path`, as to a proxy, is understood too (RFC 9112, 3.2.2).
fn target_of(target: &str) -> Option<Request> {
    let target = match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => target,
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let path = path.strip_prefix('/')?.split('/').map(decoded).collect::<Option<Vec<_>>>()?;
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, "1"));
        Some((decoded(name)?, decoded(&value.replace('+', "%20"))?))
    };
    let query = query.split('&').filter(|it| !it.is_empty()).map(pair).collect::<Option<Vec<_>>>()?;
    Some(Request { path, query, ..Request::default() })
}

/// Percent-decoding (RFC 3986, 2.1).
fn decoded(text: &str) -> Option<String> {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let digit = |byte: u8| char::from(byte).to_digit(16);
        out.push(match byte {
            b'%' => u8::try_from(digit(bytes.next()?)? * 16 + digit(bytes.next()?)?).ok()?,
            0..=b' ' | 0x7f => return None,
            _ => byte,
        });
    }
    String::from_utf8(out).ok()
}

/// A name as part of a path or a query.
pub fn encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// What a status code means, of those in use here.
const fn reason(code: u16) -> &'static str {
    match code {
        200 => "OK",
        202 => "Accepted",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        _ => "Service Unavailable",
    }
}

/// What a response says of itself.
#[derive(Debug, Clone, Copy)]
pub struct Headers {
    /// `Content-Type`
    pub content_type: &'static str,
    /// `Allow`, which every 405 has (RFC 9110, 15.5.6).
    pub allow: Option<&'static str>,
}

impl Headers {
    /// Those of a body of this type.
    pub const fn of(content_type: &'static str) -> Self {
        Self { content_type, allow: None }
    }
}

/// A whole response.
pub fn response(code: u16, headers: Headers, body: &[u8], keep_alive: bool) -> Vec<u8> {
    let Headers { content_type, allow } = headers;
    let connection = if keep_alive { "keep-alive" } else { "close" };
    let mut head = format!(
        "HTTP/1.1 {code} {}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\nConnection: {connection}\r\n",
        reason(code),
        body.len()
    );
    if let Some(method) = allow {
        head.push_str(&format!("Allow: {method}\r\n"));
    }
    [head.as_bytes(), b"\r\n", body].concat()
}

/// The beginning of a response that goes on until the connection is closed.
pub fn stream_head(content_type: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nConnection: close\r\n\r\n").into_bytes()
}

/// A response's status code and body, from everything that a server sent before it closed the connection.
/// `None` if it is not whole.
pub fn parse_response(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let length = head_length(bytes)?;
    let head = str::from_utf8(&bytes[..length]).ok()?;
    let code = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let said = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let body = &bytes[length..];
    match said {
        Some(said) => body.get(..said).map(|body| (code, body)),
        None => Some((code, body)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> Request {
        match parse(text.as_bytes()) {
            Parsed::Request(request, length) => {
                assert_eq!(length, text.len(), "{text:?}");
                request
            }
            other => panic!("{text:?}: {other:?}"),
        }
    }

    #[test]
    fn what_curl_sends_is_understood() {
        let get =
            request("GET /v1/status HTTP/1.1\r\nHost: x\r\nUser-Agent: curl/8.0\r\nAccept: */*\r\n\r\n");
        assert_eq!((get.method.as_str(), get.keep_alive), ("GET", true));
        assert_eq!(get.path, ["v1", "status"]);
        let post = request("POST /v1/a%2fb?x=1&y=%20z+w&flag HTTP/1.0\nContent-Length: 9\n\n{\"n\": 12}");
        assert_eq!((post.path[1].as_str(), post.keep_alive), ("a/b", false));
        assert_eq!(post.parameter("y").as_deref(), Some(" z w"));
        assert_eq!(post.parameter("n").as_deref(), Some("12"));
        assert!(post.flag("flag") && post.flag("x") && !post.flag("z") && !post.has_wrong_body());
        assert!(request("POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n[]").has_wrong_body());
        assert!(request("GET http://x/v1/status HTTP/1.1\r\n\r\n").path == ["v1", "status"]);
        assert!(!request("\r\nGET / HTTP/1.1\r\nconnection: Close\r\n\r\n").keep_alive);
    }

    #[test]
    fn every_beginning_of_a_request_waits_for_the_rest() {
        let whole = "POST /v1/x HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc";
        for end in 0..whole.len() {
            assert_eq!(parse(&whole.as_bytes()[..end]), Parsed::Partial(false), "{end}");
        }
        let expects = "POST / HTTP/1.1\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n";
        assert_eq!(parse(expects.as_bytes()), Parsed::Partial(true));
    }

    #[test]
    fn what_is_no_request_is_refused_with_its_reason() {
        let cases: [(&str, Bad); 12] = [
            ("hello\r\n", Bad::Syntax),
            ("GET /\r\n\r\n", Bad::Syntax),
            ("GET / HTTP/2\r\n\r\n", Bad::Syntax),
            ("GET  / HTTP/1.1\r\n\r\n", Bad::Syntax),
            ("GET x HTTP/1.1\r\n\r\n", Bad::Syntax),
            ("GET /%zz HTTP/1.1\r\n\r\n", Bad::Syntax),
            ("GET /%ff HTTP/1.1\r\n\r\n", Bad::Syntax),
            ("GET / HTTP/1.1\r\nno colon\r\n\r\n", Bad::Syntax),
            ("GET / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", Bad::Syntax),
            ("GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", Bad::Syntax),
            ("GET / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n", Bad::Body),
            ("GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", Bad::Chunked),
        ];
        for (text, bad) in cases {
            assert_eq!(parse(text.as_bytes()), Parsed::Bad(bad), "{text:?}");
        }
        let long = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(LONGEST_HEAD));
        assert_eq!(parse(long.as_bytes()), Parsed::Bad(Bad::Head));
        assert_eq!(parse(&[0x16, 3, 1, 2, 0]), Parsed::Bad(Bad::Syntax));
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let mut random = 0x2545_f491_u32;
        let seed = b"POST /v1/x?a=b&c=%41 HTTP/1.1\r\nContent-Length: 4\r\nConnection: close\r\n\r\nabcd";
        for _ in 0..20_000 {
            let mut bytes = seed.to_vec();
            for _ in 0..3 {
                random ^= random << 13;
                random ^= random >> 17;
                random ^= random << 5;
                let at = random as usize % bytes.len();
                bytes[at] = (random >> 24) as u8;
            }
            if let Parsed::Request(request, length) = parse(&bytes) {
                assert!(length <= bytes.len());
                let _ = (request.parameter("a"), request.has_wrong_body());
            }
            let _ = parse_response(&bytes);
        }
    }

    #[test]
    fn a_response_comes_back() {
        let headers = Headers { allow: Some("POST"), ..Headers::of("text/plain") };
        let bytes = response(405, headers, b"no", true);
        let text = str::from_utf8(&bytes).expect("text");
        assert!(
            text.starts_with("HTTP/1.1 405 Method Not Allowed\r\nContent-Type: text/plain\r\n"),
            "{text}"
        );
        assert!(text.ends_with("\r\nAllow: POST\r\n\r\nno"), "{text}");
        assert_eq!(parse_response(&bytes), Some((405, &b"no"[..])));
        assert_eq!(parse_response(&bytes[..bytes.len() - 1]), None);
        let mut stream = stream_head("x");
        stream.extend_from_slice(b"line\n");
        assert_eq!(parse_response(&stream), Some((200, &b"line\n"[..])));
        assert_eq!(decoded(&encoded("a b/ü")).as_deref(), Some("a b/ü"));
    }
}
