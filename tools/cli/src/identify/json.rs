//! Identify data for programs: every field by the name that the specification gives it, and under
//! `decoded` what the important ones mean.

use kiovec::spec::Cap;
use kiovec::spec::identify as spec;
use kiovec::{Controller, Namespace};
use serde_json::{Map, Value, json};

use super::decode;

/// Fields of a structure by their own names.
macro_rules! fields {
    ($from:expr; $($field:ident)*) => {{
        let mut map = Map::new();
        $(map.insert(stringify!($field).to_owned(), json!($from.$field));)*
        map
    }};
}

pub fn document(controller: &Controller, namespaces: &[Namespace]) -> Value {
    json!({
        "device": controller.name(),
        "registers": registers(controller),
        "controller": identity(controller),
        "nvm": controller.nvm_identity().map(|nvm| fields!(nvm; vsl wzsl wusl dmrl dmrsl dmsl)),
        "namespaces": namespaces.iter().map(namespace).collect::<Vec<_>>(),
    })
}

fn registers(controller: &Controller) -> Value {
    let cap: Cap = controller.capabilities();
    json!({
        "cap": cap.into_bits(),
        "vs": controller.version().into_bits(),
        "mqes": cap.mqes(),
        "cqr": cap.cqr(),
        "ams": cap.ams(),
        "to": cap.to(),
        "dstrd": cap.dstrd(),
        "css": cap.css(),
        "mpsmin": cap.mpsmin(),
        "mpsmax": cap.mpsmax(),
    })
}

fn identity(controller: &Controller) -> Value {
    let id = controller.identity();
    let mut map = fields!(id;
        vid ssvid rab cmic mdts cntlid ver rtd3r rtd3e oaes ctratt rrls cntrltype crdt nvmsr vwci mec
        oacs acl aerl frmw lpa elpe npss avscc apsta wctemp cctemp mtfa hmpre hmmin rpmbs edstt dsto
        fwug kas hctma mntmt mxtmt sanicap hmminds hmmaxd nsetidmax endgidmax anatt anacap anagrpmax
        nanagrpid pels domid sqes cqes maxcmd nn oncs fuses fna vwc awun awupf icsvscc nwpc acwu ocfs
        sgls mnan maxcna
    );
    map.extend(fields_of_another_form(id));
    map.insert("decoded".into(), decoded(controller));
    Value::Object(map)
}

/// Text, byte arrays as hexadecimal text, and numbers of 128 bits.
fn fields_of_another_form(id: &spec::Controller) -> [(String, Value); 11] {
    [
        ("sn", json!(id.serial())),
        ("mn", json!(id.model())),
        ("fr", json!(id.firmware())),
        ("subnqn", json!(id.subnqn())),
        ("ieee", json!(id.oui())),
        ("fguid", json!(decode::hex(&id.fguid))),
        ("tnvmcap", wide(id.total_capacity())),
        ("unvmcap", wide(id.unallocated_capacity())),
        ("megcap", wide(u128::from_le_bytes(id.megcap))),
        ("maxdna", wide(u128::from_le_bytes(id.maxdna))),
        ("psd", json!(power_states(id))),
    ]
    .map(|(name, value)| (name.to_owned(), value))
}

fn power_states(id: &spec::Controller) -> Vec<String> {
    id.psd.iter().take(usize::from(id.npss) + 1).map(|state| decode::hex(state)).collect()
}

/// JSON numbers end at 64 bits. So do the capacities of anything that exists.
fn wide(value: u128) -> Value {
    json!(u64::try_from(value).unwrap_or(u64::MAX))
}

fn decoded(controller: &Controller) -> Value {
    let id = controller.identity();
    json!({
        "version": controller.version().to_string(),
        "controller_type": decode::controller_type(id),
        "max_transfer_bytes": id.max_transfer(controller.capabilities().mpsmin()),
        "max_queue_entries": controller.capabilities().max_queue_entries(),
        "shadow_doorbells": controller.has_shadow_doorbells(),
        "queue_pairs": controller.available_queue_pairs(),
        "sgl_support": decode::sgl_support(id),
        "volatile_write_cache": id.has_volatile_write_cache(),
        "oncs": decode::oncs(id),
        "oacs": decode::oacs(id),
    })
}

fn namespace(namespace: &Namespace) -> Value {
    let id = namespace.identity();
    let mut map = fields!(id;
        nsze ncap nuse nsfeat nlbaf flbas mc dpc dps nmic rescap fpi dlfeat nawun nawupf nacwu nabsn
        nabo nabspf noiob npwg npwa npdg npda nows mssrl mcl msrc anagrpid nsattr nvmsetid endgid
    );
    map.insert("nsid".into(), json!(namespace.nsid()));
    map.insert("nvmcap".into(), wide(id.capacity_bytes()));
    map.insert("nguid".into(), json!(decode::hex(&id.nguid)));
    map.insert("eui64".into(), json!(decode::hex(&id.eui64)));
    map.insert("lbaf".into(), formats(namespace));
    let names: Map<String, Value> = namespace
        .descriptors()
        .iter()
        .map(decode::descriptor)
        .map(|(kind, name)| (kind.to_owned(), json!(name)))
        .collect();
    let bytes = namespace.block_size().and_then(|size| namespace.blocks().checked_mul(size.into()));
    let decoded = json!({
        "bytes": bytes,
        "block_size": namespace.block_size(),
        "metadata_size": namespace.metadata_size(),
        "names": names,
    });
    map.insert("decoded".into(), decoded);
    Value::Object(map)
}

fn formats(namespace: &Namespace) -> Value {
    let id = namespace.identity();
    let format = |(index, format): (usize, &spec::LbaFormat)| {
        json!({
            "ms": format.ms(),
            "lbads": format.lbads(),
            "rp": format.rp(),
            "in_use": index == id.format_index(),
        })
    };
    id.lbaf.iter().take(usize::from(id.nlbaf) + 1).enumerate().map(format).collect()
}
