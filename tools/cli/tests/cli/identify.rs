use super::{json, number, text};

#[test]
fn people_get_the_important_fields_decoded() {
    let shown = text("identify emulated:size=64M,block=512,mdts=5,sgl=dword,serial=S-1,namespaces=2");
    for line in [
        "sn        : S-1",
        "mdts      : 5 (transfers up to 128 KiB)",
        "sgls      : ",
        "(SGLs aligned to dwords)",
        "(Compare, Dataset Management, Write Zeroes",
        "(volatile write cache)",
        "64 I/O queue pairs",
        "namespace 1\n",
        "namespace 2\n",
        "nsze      : 131072 blocks (64 MiB)",
        "512 bytes, 0 of metadata, performance 0 (in use)",
        "eui64     : ",
        "nguid     : ",
    ] {
        assert!(shown.contains(line), "{line:?} is not in:\n{shown}");
    }
}

#[test]
fn programs_get_every_field_by_its_name() {
    let document = json("identify emulated:size=64M,block=512,mdts=6,queues=3,vwc=off");
    let controller = &document["controller"];
    assert_eq!(controller["sn"], "EMULATED0001");
    assert_eq!((number(&controller["mdts"]), number(&controller["nn"])), (6.0, 1.0));
    assert_eq!(number(&controller["decoded"]["max_transfer_bytes"]), 262_144.0);
    assert_eq!(number(&controller["decoded"]["queue_pairs"]), 3.0);
    assert_eq!(controller["decoded"]["volatile_write_cache"], false);
    assert_eq!(controller["decoded"]["shadow_doorbells"], false);
    assert_eq!(controller["decoded"]["sgl_support"], "none");
    assert_eq!(number(&document["registers"]["mqes"]), 4095.0);
    let namespace = &document["namespaces"][0];
    assert_eq!((number(&namespace["nsid"]), number(&namespace["nsze"])), (1.0, 131_072.0));
    assert_eq!(number(&namespace["decoded"]["bytes"]), 67_108_864.0);
    let in_use = |format: &&serde_json::Value| format["in_use"] == true;
    let formats = namespace["lbaf"].as_array().unwrap();
    assert_eq!(number(&formats.iter().find(in_use).unwrap()["lbads"]), 9.0);
}

#[test]
fn shadow_doorbells_are_told() {
    let document = json("identify emulated:dbbuf=on");
    assert_eq!(document["controller"]["decoded"]["shadow_doorbells"], true);
    for (device, doorbells) in [("emulated:dbbuf=on", "in memory"), ("emulated", "registers")] {
        let shown = text(&format!("identify {device}"));
        assert!(shown.contains(&format!("doorbells : {doorbells}\n")), "{shown}");
    }
}

#[test]
fn one_namespace_can_be_chosen() {
    let document = json("identify emulated:namespaces=3 --nsid 2");
    assert_eq!(document["namespaces"].as_array().unwrap().len(), 1);
    assert_eq!(number(&document["namespaces"][0]["nsid"]), 2.0);
    let shown = text("identify emulated:namespaces=3 -n 3 -o text");
    assert!(shown.contains("namespace 3") && !shown.contains("namespace 1"));
}
