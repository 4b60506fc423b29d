//! rw LOADER RPATH SRC DST
use kitbag_closure::rewrite::*;
fn main(){let a:Vec<String>=std::env::args().collect(); let b=std::fs::read(&a[3]).unwrap();
 let r=if a[1]=="@loader"{Request{is_loader:true,..Default::default()}}else{Request{interpreter:(!a[1].is_empty()).then(||a[1].clone().into_bytes()),rpath:if a[2].is_empty(){vec![]}else{a[2].split(':').map(|x|x.as_bytes().to_vec()).collect()},is_loader:false}};
 match rewrite(&b,&r){Ok(e)=>{let mut o=e.apply(&b); eprintln!("{}: +{} writes {:?} slots {:?} unpatched {:?}",a[3],e.length as i64-b.len() as i64,e.writes.iter().map(|w|(w.0,w.1.len())).collect::<Vec<_>>(),e.slots,e.unpatched);
  if let Ok(t)=std::env::var("FILL"){for s in &e.slots{let r=&mut o[s.at as usize..s.at as usize+s.length as usize]; let n=r.iter().position(|b|*b==0).unwrap_or(r.len()); let x=String::from_utf8_lossy(&r[..n]).replace(TREE,&t); r.fill(0); r[..x.len()].copy_from_slice(x.as_bytes());}}
  std::fs::write(&a[4],o).unwrap(); use std::os::unix::fs::PermissionsExt; std::fs::set_permissions(&a[4],std::fs::Permissions::from_mode(0o755)).unwrap();}
  Err(e)=>{eprintln!("{}: {e}",a[3]);std::process::exit(1)}}}
